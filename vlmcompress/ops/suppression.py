"""Greedy suppression: of things that are close to one another the best stays."""

from __future__ import annotations

import torch
from torch import Tensor


def leaders(near: Tensor, scores: Tensor) -> Tensor:
    """By falling score, each row leads unless a leader is near it; of equal scores the first comes
    first.

    Nothing waits for the device.

    Args:
        near: [n, n] bool, which rows are near which: one of the higher score suppresses the other.
        scores: [n] any dtype, no NaN.

    Returns:
        [n] bool.

    Source: non-maximum suppression, as in PruneSID, arXiv 2603.09480, section 3.
    """
    order = scores.argsort(descending=True, stable=True)
    later = near[order][:, order].triu(1)
    leads = torch.ones_like(later[:, 0]) if len(order) else later.new_ones(0)
    for place, row in enumerate(later):
        leads = leads & ~(row & leads[place])
    return torch.empty_like(leads).scatter_(0, order, leads)
