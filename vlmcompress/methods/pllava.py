"""PLLaVA: adaptive average pooling over time and space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.grid_shapes import Pooler
from vlmcompress.ops.pool import window
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class PLLaVA(Pooler):
    """The mean of T' x H' x W' adaptive windows.

    Without a budget the shape of the paper's evaluation, (16, 12, 12), no side longer than that of
    the clip. A budget k goes to space, since the paper found pooling of time worse: every frame
    becomes s x s, s = floor(sqrt(k / T)), and only a budget below one token per frame makes fewer
    frames. Official code: magic-research/PLLaVA.

    Deviations:
        Neither frames nor an image are repeated to the number of frames that the model was trained
        on.
        On a frame that is not square, s is the largest for which min(s, H) * min(s, W) fits.
        The weights that the paper tunes and blends are not touched.
    """

    name: ClassVar[str] = "pllava"
    paper: ClassVar[str] = "arXiv 2404.16994"
    summary: ClassVar[str] = "averages windows over time and space"

    shape: tuple[int, ...] = (16, 12, 12)
    """Frames, rows and columns at most when no budget is given."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise VLMCompressError(
                f"pllava: shape must be three numbers of at least 1, got {self.shape}"
            )

    def usual(self, grid: Grid) -> Grid:
        """`shape`, cut to the grid."""
        return Grid(*map(min, self.shape, (grid.t, grid.h, grid.w)))

    def fitted(self, grid: Grid, budget: float) -> Grid:
        """(T, s, s).

        Raises:
            BudgetError: less than one token.
        """
        most = self.at_least_one(budget)
        frames = min(grid.t, most)
        found = Grid(frames, 1, 1)
        for s in range(2, max(grid.h, grid.w) + 1):
            larger = Grid(frames, min(s, grid.h), min(s, grid.w))
            found = larger if len(larger) <= most else found
        return found

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Means of adaptive windows."""
        return window(tokens.features, tokens.grid, (shape.t, shape.h, shape.w))
