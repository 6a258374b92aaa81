"""Sharing a number of tokens out in whole numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.select import top_k


def apportion(quotas: Tensor, total: int, most: Tensor, *, least: int = 0) -> Tensor:
    """Whole numbers within bounds that sum to `total`, as near to `quotas` as possible.

    Token by token to the part that is furthest below its quota, of equals (to 1e-5) the first: the
    smallest sum of squared differences.

    Args:
        quotas: [P] finite; need not sum to `total`.
        total: from P * least to the sum of `most`.
        most: [P] int64, upper bounds of at least `least`.
        least: lower bound of every part.

    Returns:
        [P] int64, on the CPU.

    Raises:
        VLMCompressError: the bounds do not allow the total.
    """
    parts, most = len(quotas), most.cpu()
    if not parts * least <= total <= int(most.sum()):
        raise VLMCompressError(
            f"cannot share {total} out in {parts} parts: {parts * least} to {int(most.sum())} fit"
        )
    if total == 0:
        return torch.zeros_like(most)
    # One place for each token that a part may get, by how far the part is still below its quota.
    places = torch.arange(int(most.max()))
    # Rounding is not to decide between parts with equal rests.
    below = (quotas.detach().cpu().double()[:, None] - places).round(decimals=5)
    below = below.masked_fill(places < least, torch.inf)
    below = below.masked_fill(places >= most[:, None], -torch.inf)
    return torch.bincount(top_k(below.flatten(), total) // len(places), minlength=parts)


def rounded_up(value: float) -> int:
    """The next whole number, where rounding in floating point does not count: 7 of 0.7 * 10."""
    return math.ceil(value - 1e-9)


def even(total: int, parts: int) -> Tensor:
    """[parts] int64, on the CPU: `total` in numbers that differ by at most 1, the larger spread."""
    return (torch.arange(parts + 1) * total // parts).diff()
