"""Unit drop: tokens leave inside the vision tower, so that its later layers work less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.before_projector import TokenPatches, TowerDropper
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.contracts.threshold import ByThreshold, staying
from vlmcompress.ops.questions import Asking, answered
from vlmcompress.ops.select import farthest_point, spread_out, top_k


@dataclass(frozen=True)
class UnitDrop(ByThreshold, TowerDropper):
    """Drop patches that become one token (2x2 or 4x4, in LLaVA one) before a layer of the tower.

    Ours, of no paper. The layers before see the whole picture, those from it on only what stays: a
    dropped patch is no key and no query there. Half-way selection behind it is the intended use:
    "unit-drop+divprune". Which tokens stay is decided by what enters the layer:

    "spread" keeps those whose patches differ most: the largest squared distance of the patches from
    their mean. Plain surfaces leave first. "farthest" keeps those whose means are farthest from one
    another, by the cosine of the means as they are (centred means are far worse), as DivPrune does
    with features. "auto" is "spread", or "farthest" where a token is one patch.

    With a `threshold`, in towers that take pictures of any size, a token stays if its spread is
    more than this share of the squared lengths of its patches, so from 0 to below 1. By "farthest"
    tokens are added until no mean is farther than this, 1 - cosine, from all that stay.
    """

    name: ClassVar[str] = "unit-drop"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "drops tokens inside the vision tower"

    layer: int | float = 0.25
    """Before which layer, 0-based: an integer, or a share of the layers below 1 (rounded)."""
    score: Literal["auto", "spread", "farthest"] = "auto"
    """What decides which tokens stay."""
    ratio: float = 0.25
    """Share of the tokens kept where no budget is given."""
    whole_tower: bool = False
    """For comparisons: choose before the layer, but let the tower go on with everything, so that
    only the decoder works less."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", layer="[0, inf)")
        self.check_threshold(2)
        if isinstance(self.layer, float) and self.layer >= 1:
            raise VLMCompressError(
                f"unit-drop: layer must be an integer or a share from 0 to below 1, got "
                f"{self.layer}"
            )

    def before(self, depth: int) -> int:
        """The layer, at most the last.

        Raises:
            VLMCompressError: the tower has no layer of this number.
        """
        if isinstance(self.layer, float):
            return min(round(self.layer * depth), depth - 1)
        if self.layer >= depth:
            raise VLMCompressError(
                f"unit-drop: layer {self.layer} is not in a vision tower of {depth} layers: give 0 "
                f"to {depth - 1}, or a share below 1"
            )
        return self.layer

    @property
    def shortens(self) -> bool:
        return not self.whole_tower

    def suits(self, patches: int) -> None:
        """Raise for "spread" where a token is one patch."""
        if self.score == "spread" and patches < 2:
            raise VLMCompressError(
                'unit-drop: score="spread" compares the patches of a token, and here a token is '
                'one patch: give score="farthest"'
            )

    @torch.no_grad()
    def select(self, tokens: TokenPatches, count: int) -> Tensor:
        """[B, count] int64 ascending; with a threshold B is 1."""
        if self.threshold is not None:
            return answered(self.selecting(tokens, count))
        hidden, means = self._means(tokens)
        if self._by_means(tokens):
            return farthest_point(means, count)
        return top_k((hidden - means[:, :, None]).square().sum((2, 3)), count)

    def selecting(self, tokens: TokenPatches, count: int) -> Asking[Tensor]:
        """[1, K] int64 ascending."""
        if self.threshold is None:
            return self.select(tokens, count)
        hidden, means = self._means(tokens)
        if self._by_means(tokens):
            fresh = spread_out(means[0], self.threshold)
        else:
            spread = (hidden - means[:, :, None]).square().sum((2, 3))
            fresh = (spread > self.threshold * hidden.square().sum((2, 3)))[0]
        return (yield from staying(fresh))[None]

    def _by_means(self, tokens: TokenPatches) -> bool:
        return self.score == "farthest" or tokens.hidden.shape[2] < 2

    def _means(self, tokens: TokenPatches) -> tuple[Tensor, Tensor]:
        """The patches as float32 [B, N, m, D], and the mean of each token's [B, N, D]."""
        hidden = tokens.hidden.detach().float()
        self.suits(hidden.shape[2])
        return hidden, hidden.mean(2)
