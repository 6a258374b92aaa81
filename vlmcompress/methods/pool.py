"""Average pooling on the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.base import Reducer
from vlmcompress.ops.pool import window
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Pool(Reducer):
    """The mean of a x b windows of every frame.

    Only products a*b can be made. Of all a <= h, b <= w with a*b at most budget / t, and windows
    whose longer side is at most twice the shorter, the most windows are taken; of equal products
    the squarest windows, then the wider grid. A frame so long that no such windows exist gets the
    squarest there are. Examples on 12x12: 72 -> 8x9, 36 -> 6x6, 35 -> 5x7, 18 -> 3x6, 9 -> 3x3,
    3 -> 1x2.

    Windows follow `vlmcompress.ops.pool.window`. Time is not pooled, as PLLaVA found best.
    """

    name: ClassVar[str] = "pool"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "averages windows of the grid"

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """t*a*b by the rule above, at most the budget."""
        if budget is None:
            return super().keep_count(grid, budget)
        if budget < grid.t:
            raise BudgetError(
                f"pool makes at least one token per frame: the smallest budget for a grid of "
                f"{grid} is {grid.t}, got {budget:g}"
            )
        a, b = _shape(grid, int(min(budget, len(grid)) / grid.t + 1e-9))
        return grid.t * a * b

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` means; `count` must be one that `keep_count` gives."""
        grid = tokens.grid
        possible = self.keep_count(grid, count)
        if possible != count:
            raise VLMCompressError(
                f"pool cannot make {count} tokens of a grid of {grid}; the next smaller count "
                f"is {possible}"
            )
        return window(tokens.features, grid, _shape(grid, count // grid.t))


def _shape(grid: Grid, most: int) -> tuple[int, int]:
    """(a, b) by the rule of `Pool`; `most` windows per frame, at least 1."""
    shapes = [
        (a, b)
        for a in range(1, min(grid.h, most) + 1)
        for b in range(1, min(grid.w, most // a) + 1)
    ]

    def length(shape: tuple[int, int]) -> float:
        sides = grid.h * shape[1], grid.w * shape[0]
        return max(sides) / min(sides)

    near_square = [shape for shape in shapes if length(shape) <= 2]
    if not near_square:
        return min(shapes, key=lambda s: (length(s), -s[0] * s[1], -s[1]))
    return min(near_square, key=lambda s: (-s[0] * s[1], length(s), -s[1]))
