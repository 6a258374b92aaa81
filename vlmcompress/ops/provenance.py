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
    first = torch.full((len(made),), len(made), device=into.device)
    place = first.scatter_reduce(0, into, members, "amin")[into]
    order = place.argsort(stable=True)
    sizes = place.bincount()
    offsets = torch.cat([sizes.new_zeros(1), sizes[sizes > 0].cumsum(0)])
    return Reduction(made[into[order][offsets[:-1]]], members[order], offsets)
