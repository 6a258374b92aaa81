"""Average pooling on the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.methods.shared.grid_shapes import Pooler
from vlmcompress.ops.pool import window
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Pool(Pooler):
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

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Means of adaptive windows."""
        return window(tokens.features, tokens.grid, (shape.h, shape.w))
