"""Layouts of pictures whose features have separators among them, from a line of the table.

The line says where they stand, in words of `WORDS`. How many rows there are follows from the number
of features and the shape of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.families.family import square
from vlmcompress.patches.families.shapes import Shape, grid_of
from vlmcompress.tokens import Grid, Layout, Separator

WORDS = ("begin", "row", "end")
"""One before all tokens of a picture, one behind each row of them, one behind all."""


@dataclass(frozen=True)
class Views:
    """Sharper views of a picture, which come before the whole of it."""

    columns: int
    rows: int
    joined: bool
    """Whether they make one grid; otherwise each is one."""
    size: float
    """Their side, of that of the whole."""

    def grids(self, side: int) -> list[Grid]:
        """Theirs and that of the whole, which has `side` tokens along each side."""
        own = round(self.size * side)
        views = (
            [Grid(1, own * self.rows, own * self.columns)]
            if self.joined
            else [Grid(1, own, own)] * (self.rows * self.columns)
        )
        return [*views, Grid(1, side, side)]


def separated(words: str, count: int, shape: Shape | None, views: Views | None = None) -> Layout:
    """The layout of one picture or clip.

    Args:
        words: of `WORDS`, with spaces between them.
        count: of its features, separators among them.
        shape: (t, h, w) or (h, w) in any unit; None for a square.
        views: sharper ones, of square pictures.

    Raises:
        UnsupportedModelError: the words are others, or no grid has as many features.
    """
    said = words.split()
    if not said or set(said) - set(WORDS):
        raise UnsupportedModelError(
            f"separators must be words of {', '.join(WORDS)}, got {words!r}"
        )
    ends, behind_rows = len(set(said) - {"row"}), "row" in said
    grids = _grids(count - ends, int(behind_rows), shape, views)
    if grids is None:
        raise UnsupportedModelError(
            f"no grid has {count} features with separators {words!r}: the rule is another"
        )
    return Layout(tuple(grids), tuple(_separators(said, grids, count)))


def with_newlines(newlines: Tensor) -> Layout:
    """The layout of a picture whose rows each end with one and the same vector.

    What comes before the first row is an overview, a square, without them. Where the rows are not
    equally long, all tokens are one row.

    Args:
        newlines: [count] bool, on the CPU: where that vector is among the features.
    """
    count, places = len(newlines), newlines.nonzero()[:, 0].tolist()
    tokens = count - len(places)
    width = places[1] - places[0] - 1 if len(places) > 1 else 0
    overview = tokens - width * len(places)
    if not width or places != list(range(overview + width, count, width + 1)):
        ends = tuple(Separator(place, 0, tokens) for place in places)
        return Layout((square(tokens),), ends)
    starts = [overview + row * width for row in range(len(places))]
    ends = tuple(
        Separator(place, start, start + width) for place, start in zip(places, starts, strict=True)
    )
    whole = [square(overview)] if overview else []
    return Layout((*whole, Grid(1, len(places), width)), ends)


def views_of(call: Mapping[str, Any], number: int) -> Views | None:
    """Sharper views of the picture `number` of a feature call; None without."""
    local, counts = call.get("pixel_values_local"), call.get("num_local_patches")
    if local is None or counts is None or not int(counts[number]):
        return None
    whole: Tensor = call["pixel_values"]
    grid = call.get("patches_grid")
    columns, rows = (int(counts[number]), 1) if grid is None else map(int, grid[number])
    return Views(columns, rows, grid is not None, local.shape[-1] / whole.shape[-1])


def _grids(count: int, extra: int, shape: Shape | None, views: Views | None) -> list[Grid] | None:
    """Grids with `count` tokens together, where each row has `extra` more than its grid says."""
    if views is not None:
        found = (views.grids(side) for side in range(1, math.isqrt(max(count, 0)) + 1))
        return next((some for some in found if _size(some, extra) == count), None)
    if not extra:
        return [grid_of(count, shape)] if count > 0 else None
    t, h, w = (1, 1, 1) if shape is None else shape if len(shape) == 3 else (1, *shape)
    frame = count // t if count % t == 0 else 0
    rows = [r for r in range(1, frame // 2 + 1) if frame % r == 0]
    off = [(abs(math.log(r * w / (h * (frame // r - extra)))), r) for r in rows]
    if not off:
        return None
    _, best = min(off)
    return [Grid(t, best, frame // best - extra)]


def _size(grids: Sequence[Grid], extra: int) -> int:
    return sum(len(grid) + extra * grid.t * grid.h for grid in grids)


def _separators(said: Sequence[str], grids: Sequence[Grid], count: int) -> Iterator[Separator]:
    total = sum(map(len, grids))
    if "begin" in said:
        yield Separator(0, 0, total)
    if "row" in said:
        place = int("begin" in said)
        seen = 0
        for grid in grids:
            for _ in range(grid.t * grid.h):
                place, seen = place + grid.w, seen + grid.w
                yield Separator(place, seen - grid.w, seen)
                place += 1
    if "end" in said:
        yield Separator(count - 1, 0, total)
