"""Directions of rows, for cosine similarity: float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError


def unit_rows(rows: Tensor, name: str = "features") -> Tensor:
    """Rows at length 1.

    Args:
        rows: [..., D] any floating dtype.
        name: what they are, for the message.

    Returns:
        [..., D] float32; a row whose float32 norm is 0 stays 0.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    rows = rows.detach().float()
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if not bool(norm.isfinite().all()):
        bad = int((~norm.isfinite()).sum())
        raise VLMCompressError(
            f"{name} must be finite: {bad} of {norm.numel()} rows are NaN, infinite or too large"
        )
    return torch.where(norm > 0, rows / norm, 0.0)


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine of each row with each of `others`.

    Args:
        rows: [..., N, D] any floating dtype.
        others: [..., M, D].

    Returns:
        [..., N, M] float32, also under autocast; 0 where a row is 0.

    Raises:
        VLMCompressError: as for `unit_rows`.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return unit_rows(rows) @ unit_rows(others).transpose(-1, -2)
