"""The nearest rows of a large table, such as the words of a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.ops.similarity import unit_rows

_BLOCK = 8192


def nearest_rows(
    rows: Tensor, table: Tensor, count: int, *, block: int = _BLOCK
) -> tuple[Tensor, Tensor]:
    """The rows of a table with the highest cosine to each row.

    The table is read block by block, so that neither a float32 copy of it nor all cosines are ever
    held. Ties go to the lowest index. A row of zeros has the cosine 0 with all.

    Args:
        rows: [N, D] any floating dtype.
        table: [V, D].
        count: how many, clamped to [1, V].
        block: rows of the table that are read at once.

    Returns:
        [N, count] float32 cosines, highest first, and [N, count] int64 rows of the table.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    count = max(1, min(count, len(table)))
    with torch.autocast(rows.device.type, enabled=False):
        unit = unit_rows(rows)
        best = unit.new_full((len(unit), count), -torch.inf)
        where = torch.zeros_like(best, dtype=torch.long)
        for start in range(0, len(table), block):
            some = unit_rows(table[start : start + block].to(unit.device), "the vocabulary")
            values, ids = _best(unit @ some.T, count)
            # The best so far come first: they have the lower indices.
            best, picks = _best(torch.cat([best, values], dim=1), count)
            where = torch.cat([where, ids + start], dim=1).gather(1, picks)
    return best, where


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row, or all, and where they are; overwrites `values`."""
    count = min(count, values.shape[1])
    if values.shape[1] <= 4 * count:
        ordered = values.sort(dim=1, descending=True, stable=True)
        return ordered.values[:, :count], ordered.indices[:, :count]
    found = []
    for _ in range(count):
        found.append(values.max(1, keepdim=True))
        values.scatter_(1, found[-1].indices, -torch.inf)
    high, places = zip(*found, strict=True)
    return torch.cat(high, dim=1), torch.cat(places, dim=1)
