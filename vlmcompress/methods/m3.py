"""M3: nested grids of averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.errors import BudgetError
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.grid_shapes import Pooler
from vlmcompress.ops.pool import geometry, strided
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class M3(Pooler):
    """The mean of k x k blocks of every frame, what is left over at the edges dropped.

    24x24 becomes 576, 144, 64, 36, 16, 9, 4 or 1 tokens; the paper trains for k = 1, 2, 4, 8, 24.
    Here nothing is trained, and it is a baseline. Official code: mu-cai/matryoshka-mm.

    Deviations:
        A count that does not exist becomes the next one below (an error with `strict`). The
        official code rounds k down and makes 144 tokens when 100 are asked for.
        Of several k with the same count the largest, which drops the fewest tokens.
        Frames need not be square: blocks are cut to the frame, and the grid is (h // k, w // k).
        Strided sampling, which the paper compares with, is the method `stride`.
    """

    name: ClassVar[str] = "m3"
    paper: ClassVar[str] = "arXiv 2405.17430"
    summary: ClassVar[str] = "averages square blocks of the grid"

    strict: bool = False
    """Whether a count that does not exist is an error."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))

    def fitted(self, grid: Grid, budget: float) -> Grid:
        """The largest grid within the budget.

        Raises:
            BudgetError: less than one token per frame, or with `strict` a count that no k makes.
        """
        most = self.per_frame(grid, budget)
        shapes = [_shape(grid, k) for k in range(max(grid.h, grid.w), 0, -1)]
        found = max((shape for shape in shapes if shape.h * shape.w <= most), key=len)
        if self.strict and len(found) != round(budget):
            counts = ", ".join(map(str, sorted({len(shape) for shape in shapes})))
            raise BudgetError(
                f"m3 can make {counts} tokens of a grid of {grid}, got a budget of {budget:g}"
            )
        return found

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Means of blocks."""
        grid = tokens.grid
        k = next(k for k in range(max(grid.h, grid.w), 0, -1) if _shape(grid, k) == shape)
        sizes = ((grid.t, 1), (grid.h, min(k, grid.h)), (grid.w, min(k, grid.w)))
        axes = [geometry(size, kernel=kernel, stride=kernel) for size, kernel in sizes]
        return strided(tokens.features, grid, axes)


def _shape(grid: Grid, k: int) -> Grid:
    return Grid(grid.t, grid.h // min(k, grid.h), grid.w // min(k, grid.w))
