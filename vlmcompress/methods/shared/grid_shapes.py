"""Methods that make a smaller grid: which shape a budget becomes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.method import Reducer, share_kept
from vlmcompress.ops.finite import check_finite
from vlmcompress.tokens import Grid, Reduction, VisualTokens

_SLACK = 1e-9
"""Budgets are quotients in floating point."""


@dataclass(frozen=True)
class Pooler(Reducer):
    """A reducer whose output is itself a grid, so that only certain counts exist.

    A count stands for one shape: that of the method's default where it has one of this count.
    """

    on_grid: ClassVar[bool] = True

    def usual(self, grid: Grid) -> Grid | None:
        """The method's own shape for `grid`; None where it has none."""
        return None

    def fitted(self, grid: Grid, budget: float) -> Grid:
        """The shape for a budget of at most N: all frames, and in each the shape of `near_square`.

        Raises:
            BudgetError: nothing so small can be made.
        """
        a, b = near_square(grid, self.per_frame(grid, budget))
        return Grid(grid.t, a, b)

    @abstractmethod
    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """One token per place of `shape`."""

    def output(self, grid: Grid, budget: float | None) -> Grid:
        """What becomes of `grid`: the larger of the default and `fitted` that meets the budget.

        Raises:
            BudgetError: nothing so small can be made, or there is neither budget nor default.
        """
        usual = self.usual(grid)
        if budget is None:
            if usual is None:
                share_kept(self.name, grid, budget)  # raises
            return usual or grid
        found = self.fitted(grid, min(budget, len(grid)))
        if usual is not None and len(found) <= len(usual) <= budget + _SLACK:
            return usual
        return found

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Tokens of the output, at most the budget."""
        return len(self.output(grid, budget))

    def goes_by(self, grid: Grid) -> bool:
        """Yes: only what windows are filled with depends on the tokens."""
        return True

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` means; `count` must be one that `keep_count` gives."""
        shape = self.shape_for(tokens, count)
        return Reduction.identity(tokens.features) if shape is None else self.pooled(tokens, shape)

    def shape_for(self, tokens: VisualTokens, count: int) -> Grid | None:
        """What the tokens become; None where all are kept.

        Raises:
            VLMCompressError: there is no shape of `count` tokens, or a feature is no number.
        """
        grid = tokens.grid
        if count >= len(grid):
            check_finite(tokens.features)
            return None
        shape = self.output(grid, count)
        if len(shape) != count:
            raise VLMCompressError(
                f"{self.name} cannot make {count} tokens of a grid of {grid}; the next smaller "
                f"count is {len(shape)}"
            )
        return shape

    def per_frame(self, grid: Grid, budget: float) -> int:
        """Tokens that each frame may have.

        Raises:
            BudgetError: less than one.
        """
        if budget < grid.t:
            raise BudgetError(
                f"{self.name} makes at least one token per frame: the smallest budget for a grid "
                f"of {grid} is {grid.t}, got {budget:g}"
            )
        return int(budget / grid.t + _SLACK)

    def at_least_one(self, budget: float) -> int:
        """Tokens of a method that pools time, too.

        Raises:
            BudgetError: less than one.
        """
        if budget < 1:
            raise BudgetError(f"{self.name} makes at least one token, got a budget of {budget:g}")
        return int(budget + _SLACK)


def coarser(grids: Sequence[Grid], factor: float) -> tuple[Grid, ...]:
    """Grids with windows of about `factor` tokens along each side, all frames kept.

    ceil(h / factor) x ceil(w / factor): a larger factor never makes a side longer.
    """
    # In proportion, so that sides of several grids change at the same factors.
    factor *= 1 + _SLACK
    return tuple(Grid(g.t, math.ceil(g.h / factor), math.ceil(g.w / factor)) for g in grids)


@lru_cache(maxsize=1024)
def coarser_of(grids: tuple[Grid, ...], count: int) -> tuple[Grid, ...] | None:
    """The grids of `count` tokens in all that `coarser` can make; None where there are none."""
    sides = {side for grid in grids for side in (grid.h, grid.w)}
    factors = sorted({side / parts for side in sides for parts in range(1, side + 1)})
    shapes = (coarser(grids, factor) for factor in factors)
    return next((found for found in shapes if sum(map(len, found)) == count), None)


def near_square(
    grid: Grid, most: int, fits: Callable[[int, int], bool] = lambda size, parts: True
) -> tuple[int, int]:
    """(a, b): windows on a frame of `grid`, at most `most` of them and at least 1.

    Of all a <= h, b <= w with a*b <= most whose windows are at most twice as long as wide the most
    windows; of equal products the squarest windows, then the wider grid. A frame so long that no
    such windows exist gets the squarest there are.

    Args:
        grid: its h and w.
        most: at least 1.
        fits: whether a side of so many tokens may be cut into so many parts; always for 1.
    """
    shapes = [
        (a, b)
        for a in range(1, min(grid.h, most) + 1)
        if fits(grid.h, a)
        for b in range(1, min(grid.w, most // a) + 1)
        if fits(grid.w, b)
    ]

    def length(shape: tuple[int, int]) -> float:
        sides = grid.h * shape[1], grid.w * shape[0]
        return max(sides) / min(sides)

    squarish = [shape for shape in shapes if length(shape) <= 2]
    if not squarish:
        return min(shapes, key=lambda s: (length(s), -s[0] * s[1], -s[1]))
    return min(squarish, key=lambda s: (-s[0] * s[1], length(s), -s[1]))
