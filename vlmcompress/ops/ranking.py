"""Places and ranks, without waiting for the device to say how many there are."""

from __future__ import annotations

import torch
from torch import Tensor


def marked(mask: Tensor, count: int) -> Tensor:
    """[count] int64, ascending: the places that are marked.

    Args:
        mask: [N] bool.
        count: how many of them are true, as `nonzero` would have to ask.
    """
    return mask.sort(descending=True, stable=True).indices[:count]


def best(scores: Tensor, count: int) -> Tensor:
    """[count] int64, ascending: the highest scores, of equal ones the first.

    `top_k` for scores that were checked before: it does not look for NaN.

    Args:
        scores: [N] any dtype, no NaN.
        count: from 0 to N.
    """
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def ranks(scores: Tensor) -> Tensor:
    """[N] int64: 0 for the lowest; of equal scores the first ranks highest.

    Args:
        scores: [N] any dtype, no NaN.
    """
    order = scores.argsort(descending=True, stable=True)
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places.flip(0))
