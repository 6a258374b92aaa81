"""Evenly spaced tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.tokens import Grid, VisualTokens


@dataclass(frozen=True)
class Stride(Selector):
    """Tokens spread evenly over the grid, exactly as many as asked for.

    The field's strided sampling takes every s-th row and every s-th column (M3's table, the grid of
    FEATHER), which exists for few counts only. Here the count is shared out evenly over the frames,
    in a frame over round(sqrt(count * h / w)) rows, in a row over the columns; k of n places are
    the centres of k equal parts. With count = h*w / s^2 this is the strided grid with its offset in
    the middle of the stride. Every s-th token in raster order would instead take the same few
    columns of every row.
    """

    name: ClassVar[str] = "stride"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "keeps evenly spaced tokens"
    on_grid: ClassVar[bool] = True

    def goes_by(self, grid: Grid) -> bool:
        """Yes."""
        return True

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        grid, device = tokens.grid, tokens.features.device
        return torch.tensor(_places(grid, count), dtype=torch.long, device=device)


def _places(grid: Grid, count: int) -> list[int]:
    places: list[int] = []
    for frame, inside in enumerate(_shares(min(count, len(grid)), grid.t)):
        for row, in_row in zip(*_rows(grid, inside), strict=True):
            start = (frame * grid.h + row) * grid.w
            places += [start + column for column in _centres(grid.w, in_row)]
    return places


def _rows(grid: Grid, count: int) -> tuple[list[int], list[int]]:
    """Rows of a frame that are used, and how many tokens each gives."""
    if count == 0:
        return [], []
    fewest = -(-count // grid.w)
    rows = max(fewest, min(round((count * grid.h / grid.w) ** 0.5), grid.h, count))
    return _centres(grid.h, rows), _shares(count, rows)


def _centres(size: int, parts: int) -> list[int]:
    return [(2 * i + 1) * size // (2 * parts) for i in range(parts)]


def _shares(count: int, parts: int) -> list[int]:
    """`count` in `parts` whole numbers that differ by at most one, the larger ones spread out."""
    return [(i + 1) * count // parts - i * count // parts for i in range(parts)]
