"""Average pooling on the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderReducer, mean_tokens
from vlmcompress.methods.contracts.method import Stage
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.methods.shared.grid_shapes import Pooler, coarser, coarser_of
from vlmcompress.methods.shared.schedules import check_cuts, falling, largest_within, quarters
from vlmcompress.ops.pool import similar, window
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Pool(Pooler, DecoderReducer):
    """The mean of a x b windows of every frame.

    Only products a*b can be made. Of all a <= h, b <= w with a*b at most budget / t, and windows
    whose longer side is at most twice the shorter, the most windows are taken; of equal products
    the squarest windows, then the wider grid. A frame so long that no such windows exist gets the
    squarest there are. Examples on 12x12: 72 -> 8x9, 36 -> 6x6, 35 -> 5x7, 18 -> 3x6, 9 -> 3x3,
    3 -> 1x2.

    Windows follow `vlmcompress.ops.pool.window`. Time is not pooled, as PLLaVA found best.

    With `stage="decoder"` hidden states are pooled before some decoder layers, each time the
    windows of the time before: f x f of them, 2 x 2 without a budget, so that before the j-th of
    `layers` ceil(h / f^j) x ceil(w / f^j) are left of each grid. For a budget f is solved for the
    largest mean within it. It needs all tokens on their grid and goes with no other method. What a
    model adds to visual tokens in later layers (DeepStack) is that of the window's first token. The
    structure is that of the Dynamic Pyramid Network (arXiv 2503.20322), whose router and weights
    are trained; here nothing is.

    With `weights="similar"` a window's tokens weigh by the softmax of their cosine to its plain
    mean, divided by `temperature` (ours, after the part of TokenPacker that has no weights).
    """

    name: ClassVar[str] = "pool"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "averages windows of the grid"
    stages: ClassVar[frozenset[Stage]] = frozenset({"projector", "decoder"})

    stage: Literal["projector", "decoder"] = "projector"
    """Where it acts."""
    layers: tuple[int, ...] | None = None
    """Of the decoder, before which windows are pooled; None for the quarters of the depth."""
    weights: Literal["equal", "similar"] = "equal"
    """Of the tokens of a window."""
    temperature: float = 0.1
    """Of similar weights, 1e-6 or more. The larger, the more even."""

    def __post_init__(self) -> None:
        check_fields(self, temperature=TEMPERATURE)
        cuts = self.layers
        if cuts is not None and self.stage != "decoder":
            raise VLMCompressError("pool: layers are those of the decoder, give stage='decoder'")
        if cuts is not None and (not cuts or cuts[0] < 1 or sorted(set(cuts)) != list(cuts)):
            raise VLMCompressError(
                f"pool: layers must be ascending and 1 or more, for example (8, 16, 24), got {cuts}"
            )

    @property
    def acts_at(self) -> Stage:
        """The stage that was chosen."""
        return self.stage

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Means of adaptive windows."""
        return self._windows(tokens.features, tokens.grid, shape)

    def _windows(self, rows: Tensor, grid: Grid, shape: Grid) -> Reduction:
        found = window(rows, grid, (shape.h, shape.w))
        return similar(rows, found, self.temperature) if self.weights == "similar" else found

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """As if the tokens were one square image, or one row where they are none."""
        side = math.isqrt(tokens)
        grid = Grid(1, side, side) if side * side == tokens else Grid(1, 1, tokens)
        return self.schedule_on([grid], layers, tokens, budget)

    def schedule_on(
        self, grids: Sequence[Grid], layers: int, tokens: int, budget: float | None
    ) -> dict[int, int]:
        """{layer: tokens of the coarser grids}, without cuts that change nothing."""
        cuts = quarters(layers) if self.layers is None else self.layers
        check_cuts("pool", cuts, layers)

        def shrinking(share: float) -> dict[int, int]:
            steps = ((cut, share**-j) for j, cut in enumerate(cuts, start=1))
            left = {cut: sum(map(len, coarser(grids, factor))) for cut, factor in steps}
            return falling(left, tokens)

        if budget is None:
            return shrinking(0.5)
        if budget >= tokens:
            return {}
        least = 1 / max(max(grid.h, grid.w) for grid in grids)
        found = largest_within(shrinking, layers, tokens, budget, (least, 1.0))
        if found is None:
            smallest = mean_tokens(layers, tokens, shrinking(least))
            way = f"cut earlier with layers={(1, *cuts[1:])}" if cuts[0] > 1 else "give so many"
            raise BudgetError(
                f"pool before the layers {', '.join(map(str, cuts))} cannot keep fewer than "
                f"{math.ceil(100 * smallest) / 100:g} of {tokens} visual tokens on average, got "
                f"{budget:g}: {way}, or pool at stage='projector'"
            )
        return found

    def merge(self, hidden: Tensor, grids: Sequence[Grid], count: int) -> Reduction:
        """Means of adaptive windows of the windows that are left."""
        before, after = (coarser_of(tuple(grids), n) for n in (len(hidden), count))
        if before is None or after is None:
            raise VLMCompressError(
                f"pool cannot make {count} of {len(hidden)} tokens on {'+'.join(map(str, grids))}"
            )
        sizes = [len(grid) for grid in before]
        pairs = zip(torch.split(hidden, sizes), before, after, strict=True)
        return Reduction.join([self._windows(*one) for one in pairs], [0, *accumulate(sizes)][:-1])
