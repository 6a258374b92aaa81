"""Reductions where some tokens went nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.tokens import Reduction


def grouped(made: Tensor, into: Tensor) -> Reduction:
    """The tokens that went into the same one are a group, whose features stand in that one's row.

    Args:
        made: [N, D]; rows that nothing went into are not read.
        into: [N] int64: the token that each went into, or -1 where it was dropped.
    """
    members = (into >= 0).nonzero()[:, 0]
    into = into[members]
    first = into.new_full((len(made),), len(made)).scatter_reduce(0, into, members, "amin")
    place, order = first[into].sort(stable=True)
    heads = (first[into] == members).nonzero()[:, 0]
    offsets = torch.searchsorted(place, torch.cat([members[heads], into.new_tensor([len(made)])]))
    return Reduction(made[into[heads]], members[order], offsets)
