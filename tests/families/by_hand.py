"""Where separators stand among the features of types that have some, written down by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Place = tuple[int, int, int]
"""Among the placeholders of a picture, the first visual token of its row, the one after."""


def _rows(count: int, rows: int, first: int = 0) -> list[Place]:
    """One behind each of `rows` rows, where `count` features are rows and those."""
    wide = count // rows - 1
    return [(first + r * (wide + 1) + wide, r * wide, (r + 1) * wide) for r in range(rows)]


def _end(count: int, others: int = 0) -> list[Place]:
    return [(count - 1, 0, count - 1 - others)]


def _square(count: int) -> list[Place]:
    side = math.isqrt(count)  # side * (side + 1) + 1
    return [*_rows(count - 1, side), *_end(count, side)]


def _framed(count: int, rows: int) -> list[Place]:
    return [(0, 0, count - 2 - rows), *_rows(count - 2, rows, 1), *_end(count, rows + 1)]


def _tiled(count: int, rows: int) -> list[Place]:
    """Behind each of 4 rows of 8, which follow an overview of 4x4."""
    return [(16 + 9 * row + 8, 16 + 8 * row, 24 + 8 * row) for row in range(4)]


SEPARATORS: dict[str, Callable[[int, int], list[Place]]] = {
    "deepseek_ocr2": lambda count, rows: _end(count),
    "unlimited_ocr": lambda count, rows: _square(count),
    "granite4_vision": _tiled,
    "hy_v4_vl": _rows,
    "hunyuan_vl": _framed,
}
"""By the number of features and of rows of patches, which are merged two by two."""


def separators(model_type: str, count: int, grid: Tensor | None) -> list[Place]:
    """Of a picture or clip of (t, h, w) patches."""
    if model_type not in SEPARATORS:
        return []
    rows = 0 if grid is None else int(grid[0] * grid[1]) // 2
    return SEPARATORS[model_type](count, rows)


def left(count: int, places: list[Place], kept: list[int]) -> Tensor:
    """[count] bool: visual tokens `kept`, and separators of rows that keep any of theirs."""
    visual = torch.ones(count, dtype=torch.bool)
    visual[[place for place, _, _ in places]] = False
    found = torch.zeros(count, dtype=torch.bool)
    found[visual.nonzero()[:, 0][kept]] = True
    for place, start, stop in places:
        found[place] = any(start <= token < stop for token in kept)
    return found
