"""What of a budget each grid of an image gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from vlmcompress.tokens import Grid, Layout


def steps(layout: Layout | Grid) -> int:
    """Temporal steps of a clip; an image is one, in however many grids it is laid out."""
    times = [grid.t for grid in parts_of(layout)]
    return sum(times) if max(times, default=1) > 1 else 1


def each(budget: float | None, share: float) -> float | None:
    """The budget of a tile or frame that is `share` of an image: whole tokens, at least one.

    Rounded down, so that equal parts together stay within the budget.
    """
    return None if budget is None else max(1, math.floor(budget * share + 1e-9))


def parts_of(layout: Layout | Grid, split: bool = False) -> tuple[Grid, ...]:
    """The grids of a layout, or those of its temporal steps."""
    grids = (layout,) if isinstance(layout, Grid) else layout.parts
    return tuple(Grid(1, g.h, g.w) for g in grids for _ in range(g.t)) if split else grids


def shares_of(ask: float | None, sizes: Sequence[int], even: bool) -> Sequence[float | None]:
    """`ask` tokens over parts of the given sizes, in whole tokens where there are several."""
    if ask is None:
        return [None] * len(sizes)
    if len(sizes) == 1:
        return [ask]
    if even:
        return [round(ask / len(sizes))] * len(sizes)
    ends = [round(ask * end / sum(sizes)) for end in accumulate(sizes)]
    return [end - start for start, end in pairwise([0, *ends])]
