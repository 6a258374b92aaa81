"""AIM, its merging before the decoder: pairs of similar tokens inside each frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.method import Reducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.token_merging import Crowd, merge_in_rounds
from vlmcompress.ops.finite import finite
from vlmcompress.ops.groups import Groups
from vlmcompress.ops.merge import ranked_bipartite
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class AimMerge(Reducer):
    """Merge the most similar pairs in rounds, each frame for itself, until a share is left.

    A round takes min(n // 2, n - k) tokens: 196 -> 98 -> 49, 576 -> 288 -> 144 -> 72. Groups are
    plain means, not by size, also over several rounds. All frames keep the same number, so that
    only its multiples are possible. Official code: LaVi-Lab/AIM.

    Deviations:
        The rounds to any k are ours; they give every recipe of the repository.
        Images are merged, too; in LLaVA-OneVision only frames are.
        Between rounds tokens stand in the order of the official code (`order`), which is the order
        in which they enter the decoder there; here groups go to the place of their smallest member.
        Similarities are float32, sorts are stable, ties go to the lowest index.
    """

    name: ClassVar[str] = "aim-merge"
    paper: ClassVar[str] = "arXiv 2412.03248"
    summary: ClassVar[str] = "merges similar pairs inside each frame in rounds"
    needs: ClassVar[frozenset[str]] = frozenset({"keys|"})

    ratio: float = 0.25
    """Share kept when no budget is given; in (0, 1]. 0.125 for LLaVA-1.5."""
    metric: Literal["features", "keys"] = "features"
    """What is compared: projected features, or the keys of the last layer of the tower, as in
    LLaVA-1.5."""
    means: Literal["plain", "size"] = "plain"
    """Whether a token counts once in a mean, or by the tokens that it stands for."""
    order: Literal["similarity", "raster"] = "similarity"
    """Order of tokens between rounds, which makes the next pairs: sources that stayed by falling
    similarity and then destinations, or by smallest member."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")

    @property
    def asks(self) -> frozenset[str]:
        """Keys only where they are compared."""
        return frozenset({"keys"} if self.metric == "keys" else ())

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """The same number for every frame; without a budget round(ratio * h * w), at least 1."""
        frame = grid.h * grid.w
        if budget is None:
            return grid.t * max(1, round(self.ratio * frame))
        if round(budget) < grid.t:
            raise BudgetError(
                f"aim-merge leaves at least one token per frame: the smallest budget for a grid of "
                f"{grid} is {grid.t}, got {budget:g}"
            )
        return grid.t * min(frame, round(budget) // grid.t)

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` means; `count` must be one that `keep_count` gives."""
        grid = tokens.grid
        count = min(count, len(grid))
        possible = self.keep_count(grid, count)
        if possible != count:
            raise VLMCompressError(
                f"aim-merge cannot make {count} tokens of {grid.t} frames; the next smaller count "
                f"is {possible}"
            )
        features = _frames(tokens.features, grid)
        metric = features
        if self.metric == "keys":
            if tokens.keys is None:
                raise VLMCompressError("aim-merge with metric='keys' needs keys, there are none")
            metric = _frames(tokens.keys, grid)
        sizes = torch.ones_like(features[..., 0])
        if tokens.sizes is not None:
            sizes = tokens.sizes.to(sizes).reshape(sizes.shape)
        made = merge_in_rounds(features, Crowd(metric, sizes), count // grid.t, self._round)
        return replace(made, features=made.features.to(tokens.features.dtype))

    def _round(self, crowd: Crowd, remove: int) -> tuple[Groups, Tensor]:
        leader, order = ranked_bipartite(crowd.metric, remove)
        weights = crowd.sizes if self.means == "size" else torch.ones_like(crowd.sizes)
        return Groups.of(leader, order if self.order == "similarity" else None), weights


def _frames(values: Tensor, grid: Grid) -> Tensor:
    return finite(values).reshape(grid.t, grid.h * grid.w, -1)
