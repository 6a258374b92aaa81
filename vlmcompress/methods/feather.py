"""FEATHER: two cuts by attention without rotary embedding, with a coarse grid at the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.schedules import check_cuts, check_reachable, falling, nearest
from vlmcompress.ops.ranking import ranks
from vlmcompress.ops.select import top_k
from vlmcompress.tokens import Grid


class _Union:
    """`adaptive`: of the class False, of an instance whether it keeps the union."""

    def __get__(self, method: Feather | None, owner: type[Feather]) -> bool:
        return method is not None and not method.fixed


@dataclass(frozen=True)
class Feather(DecoderMethod):
    """Rank by the last token without rotary embedding, cut at a quarter and at half the depth.

    The rank is the softmax over the visual tokens only, mean over heads, in the layer before the
    cut. The first cut keeps every stride-th row and column of the grid and the int(n * (1 - R)) of
    the n tokens that rank highest, the second int(n1 * (1 - R)**2) of the n1 that are left.
    Official code: the FEATHER fork of prismatic-vlms.

    Deviations:
        The number kept first is fixed: the grid, then the best of the rest, up to int(n * (1 - R))
        and the points of the grid, ceil(h / stride) * ceil(w / stride). That holds all that the
        official union holds, which is smaller by the tokens in both. Behind another method the
        points count in proportion to what it left. `fixed=False` keeps the union; it goes with no
        budget.
        For a budget R is solved for the nearest mean that whole numbers allow. Below R = 1 the
        grid itself is thinned, the best of it stay.
        The cuts 8 and 16 of 32 layers become L/4 and L/2 for other depths.
        Grids of any shape; of several grids, and of each frame of a clip, every one has its own
        lattice. The official code needs a square image.
    """

    name: ClassVar[str] = "feather"
    paper: ClassVar[str] = "arXiv 2412.13180"
    summary: ClassVar[str] = "drops by attention without rotary embedding, keeps a coarse grid"

    adaptive = _Union()

    layers: tuple[int, ...] | None = None
    """The two layers before which tokens are dropped; None for L/4 and L/2."""
    ratio: float = 0.7
    """R: share that the rank drops when no budget is given; in (0, 1)."""
    stride: int = 3
    """Of the grid that the first cut keeps."""
    fixed: bool = True
    """Whether the number is known beforehand."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        cuts = self.layers
        if cuts is not None and not (len(cuts) == 2 and 1 <= cuts[0] < cuts[1]):
            raise VLMCompressError(
                f"feather: layers must be two, ascending and 1 or more, for example (8, 16), "
                f"got {cuts}"
            )
        if not 0 < self.ratio < 1:
            raise VLMCompressError(f"feather: ratio must be between 0 and 1, got {self.ratio}")
        if self.stride < 1:
            raise VLMCompressError(f"feather: stride must be 1 or more, got {self.stride}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{first: grid and best, second: best} of a square grid."""
        side = math.ceil(math.sqrt(tokens) / self.stride)
        return self._schedule(layers, tokens, budget, min(tokens, side * side))

    def schedule_on(
        self, grids: Sequence[Grid], layers: int, tokens: int, budget: float | None
    ) -> dict[int, int]:
        """{first: grid and best, second: best} of any; of what is left of it, in proportion."""
        points = sum(g.t * -(-g.h // self.stride) * -(-g.w // self.stride) for g in grids)
        whole = max(1, sum(map(len, grids)))
        return self._schedule(layers, tokens, budget, min(tokens, -(-points * tokens // whole)))

    def _schedule(
        self, layers: int, tokens: int, budget: float | None, points: int
    ) -> dict[int, int]:
        """Without cuts that change nothing; the lattice has so many points."""
        cuts = self._cuts(layers)
        check_cuts("feather", cuts, layers)
        if budget is not None and budget >= tokens:
            return {}
        if not self.fixed:
            if budget is not None:
                raise BudgetError(
                    f"feather(fixed=False) keeps what it finds and takes no budget, got {budget:g}"
                )
            return {cuts[0]: tokens, cuts[1]: _floor(tokens * (1 - self.ratio) ** 2)}

        def keeping(share: float) -> dict[int, int]:
            first = min(tokens, max(0, _floor(tokens * share) + points))
            counts = {cuts[0]: first, cuts[1]: _floor(first * max(0.0, share) ** 2)}
            return falling(counts, tokens)

        if budget is None:
            return keeping(1 - self.ratio)
        earlier = f"layers={(1, cuts[1])}"
        check_reachable("feather", cuts[0], layers, tokens, budget, earlier)
        # Shares below 0 thin the grid.
        grid = points / max(1, tokens)
        return nearest(lambda x: keeping(x * (1 + grid) - grid), layers, tokens, budget)

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the last token in the layer before the cut, mean over heads."""
        rows = view.attention(rows="last", keys="visual", rope=False, of="previous")
        return rows.mean(dim=(0, 1))

    def keep(self, view: LayerView, count: int) -> Tensor:
        """At the first cut with the grid, at the second without."""
        alive, first = len(view.visual), view.layer == self._cuts(view.depth)[0]
        if not first:
            share = (1 - self.ratio) ** 2
            return super().keep(view, count if self.fixed else _floor(alive * share))
        if alive == 0 or (self.fixed and not 0 < count < alive):
            return super().keep(view, count)
        scores, grid = self.score(view), _lattice(view, self.stride)
        if self.fixed:
            # The grid before the others, however much of it is left. NaN has no rank: it stays NaN.
            return top_k(ranks(scores) + alive * grid + 0 * scores, count)
        best = _floor(alive * (1 - self.ratio))
        if best:
            grid[top_k(scores, best)] = True
        return grid.nonzero()[:, 0]

    def _cuts(self, layers: int) -> tuple[int, ...]:
        first = max(1, layers // 4)
        return self.layers or (first, max(first + 1, layers // 2))


def _floor(number: float) -> int:
    # 1 - 0.9 is 0.0999... in floating point, of 100 tokens that means 10.
    return math.floor(number + 1e-9)


def _lattice(view: LayerView, stride: int) -> Tensor:
    """[V] bool: the survivors in every stride-th row and column of their grid."""
    found, start = torch.zeros_like(view.index, dtype=torch.bool), 0
    for grid in view.parts:
        place = view.index - start
        row, column = place // grid.w % grid.h, place % grid.w
        mine = (place >= 0) & (place < len(grid))
        found |= mine & (row % stride == 0) & (column % stride == 0)
        start += len(grid)
    return found
