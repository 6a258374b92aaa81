"""Tokens that others go into: which one each goes into, and what becomes of it. Float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.ops.groups import segment_sum, segments
from vlmcompress.ops.similarity import unit_rows

BLOCK_BYTES = 2**26
"""Working memory for the similarities of a block of rows."""


def nearest_anchor(rows: Tensor, anchors: Tensor, *, max_bytes: int = BLOCK_BYTES) -> Tensor:
    """The anchor of the highest cosine to each row; of equals the first, an anchor itself.

    Args:
        rows: [n, D] any dtype, compared in float32 (also under autocast).
        anchors: [A] int64 unique, which rows are anchors; at least one.
        max_bytes: working memory for a block of rows; a block has at least one.

    Returns:
        [n] int64 places in `anchors`.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    with torch.autocast(rows.device.type, enabled=False):
        unit = unit_rows(rows)
        targets = unit[anchors].T
        blocks = torch.split(unit, max(1, max_bytes // (4 * len(anchors))))
        found = torch.cat([(block @ targets).argmax(dim=-1) for block in blocks])
    found[anchors] = torch.arange(len(anchors), device=rows.device)
    return found


def nearest_centre(rows: Tensor, centres: Tensor) -> Tensor:
    """The centre at the least Euclidean distance from each row; of equals the first.

    Args:
        rows: [n, D] any dtype, finite, compared in float32 (also under autocast).
        centres: [C] int64 unique, which rows are centres; each is its own.

    Returns:
        [n] int64 places in `centres`.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.detach().float()
        rows = rows - rows.mean(dim=0)  # where less cancels
        own = rows[centres]
        found = torch.sub(own.square().sum(dim=-1), 2 * rows @ own.T).argmin(dim=-1)
    found[centres] = torch.arange(len(centres), device=rows.device)
    return found


def means(rows: Tensor, into: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """The mean of the rows that went into each anchor; a row that is alone keeps its bits.

    Args:
        rows: [n, D] any dtype.
        into: [n] int64 in 0..count-1, every number among them.
        count: anchors.
        weights: [n] positive, such as the patches that a token stands for; alike if None.

    Returns:
        [count, D] float32.
    """
    members, offsets = segments(into, count)
    weights = torch.ones_like(into) if weights is None else weights
    own = weights.float()[members]
    sums = segment_sum(own[:, None], torch.arange(len(own), device=own.device), offsets)
    shares = own / sums[:, 0][into[members]]
    return segment_sum(rows, members, offsets, shares)
