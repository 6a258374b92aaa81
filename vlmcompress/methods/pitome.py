"""PiToMe: tokens with many alike merge, the rare ones are protected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.before_projector import EncoderView
from vlmcompress.methods.contracts.method import share_kept
from vlmcompress.methods.shared.token_merging import Crowd, Merger, descend
from vlmcompress.ops.merge import bipartite, energy_matching
from vlmcompress.tokens import Grid

_LLAVA_LAYERS = 23
"""Layers of CLIP that the features of LLaVA-1.5 go through: the paper's setting."""


@dataclass(frozen=True)
class PiToMe(Merger):
    """Only the tokens in the largest clusters merge: those of the highest energy.

    Every layer keeps the same share `rho` of its tokens. As for LLaVA in the paper, the output of a
    layer is compared, the first half of the layers merges as ToMe does without regard to energy,
    means are plain and attention is not proportional. Official code: hchautran/PiToMe.

    With a budget rho is the one that reaches it (by bisection; in the last layers the rest).
    Without one, the share that is kept is that of `rho` after the 23 layers of LLaVA-1.5, in any
    tower: 54 of 576 for 0.9, 101 for 0.925.

    Deviations, besides those of `Merger`:
        The number that a layer removes is counted without CLS everywhere; the official code counts
        it in the first half. The counts at the end are the same.
        Layers are counted as in CLIP, whose last layer the features of LLaVA skip: L of the margin
        .9 - .9 l / L is one more than the features go through, and the first half is l <= L / 2.
        After the projector every round goes by energy, with a margin that falls with the rounds.
    """

    name: ClassVar[str] = "pitome"
    paper: ClassVar[str] = "arXiv 2405.16148"
    summary: ClassVar[str] = "merges tokens of large clusters, protects rare ones"

    rho: float = 0.9
    """Share of the tokens that each layer keeps; from 0.5 to below 1. 0.925 for the 13B model."""
    margin: float = 0.9
    """Cosine from which on tokens attract each other in the first layer; falls to 0 at the end."""
    means: Literal["plain", "size"] = "plain"
    """Whether a token counts once in a mean, or by the patches that it stands for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.rho < 1:
            raise VLMCompressError(
                f"pitome: rho must be at least 0.5 and below 1, got {self.rho}: a layer can merge "
                "half of its tokens at most"
            )
        if not 0 <= self.margin <= 1:
            raise VLMCompressError(f"pitome: margin must be from 0 to 1, got {self.margin}")

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """What `rho` leaves after the 23 layers of LLaVA-1.5 without a budget."""
        if budget is None:
            return _left(self.rho, _LLAVA_LAYERS, len(grid))
        return share_kept(self.name, grid, budget)

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        """The same share in every layer: `rho` if it reaches `keep`, else the rho that does."""
        self.check_reachable(layers, tokens, keep)
        rho = self.rho if _left(self.rho, layers, tokens) == keep else _solve(layers, tokens, keep)
        return descend(range(layers), tokens, keep, lambda n: _step(rho, n))

    def seen(self, view: EncoderView) -> Crowd:
        """What the layer gave."""
        return Crowd(view.hidden, view.sizes)

    def match(self, crowd: Crowd, remove: int) -> Tensor:
        """[B, n] leaders."""
        if crowd.inside and crowd.done <= 0.5:
            return bipartite(crowd.metric, remove, crowd.protected)
        margin = self.margin * (1 - crowd.done)
        return energy_matching(crowd.metric, remove, margin, crowd.protected)

    def weights(self, crowd: Crowd) -> Tensor:
        """[B, n] ones, or sizes."""
        return torch.ones_like(crowd.sizes) if self.means == "plain" else crowd.sizes


def _step(rho: float, tokens: int) -> int:
    """Tokens that a layer leaves."""
    return tokens - min(math.floor(tokens - tokens * rho), tokens // 2)


def _left(rho: float, layers: int, tokens: int) -> int:
    for _ in range(layers):
        tokens = _step(rho, tokens)
    return tokens


def _solve(layers: int, tokens: int, keep: int) -> float:
    """The largest rho that leaves at most `keep`; 0.5 leaves the fewest."""
    low, high = 0.5, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _left(middle, layers, tokens) <= keep else (low, middle)
    return low
