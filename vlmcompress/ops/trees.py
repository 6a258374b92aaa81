"""Trees over time: each token hangs on the most similar one of the frame before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vlmcompress.ops.groups import segment_sum, segments
from vlmcompress.ops.similarity import unit_rows


@dataclass(frozen=True)
class Trees:
    """Which tree of a run of T frames each of their F tokens belongs to."""

    root: Tensor
    """[T * F] int64: the token at the top of its tree, itself where it hangs on none."""
    children: Tensor
    """[T * F] int64: tokens that hang directly on each."""

    @classmethod
    def join(cls, runs: Sequence[Trees]) -> Trees:
        """Those of runs that follow each other."""
        starts = [0, *accumulate(len(run.root) for run in runs)]
        roots = [run.root + start for run, start in zip(runs, starts, strict=False)]
        return cls(torch.cat(roots), torch.cat([run.children for run in runs]))

    @property
    def tops(self) -> Tensor:
        """[T * F] bool: which tokens are roots."""
        return self.root == torch.arange(len(self.root), device=self.root.device)

    def sums(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[T * F, D] float32 sums over each tree and [T * F] int64 its tokens; 0 where no root."""
        members, offsets = segments(self.root, len(self.root))
        return segment_sum(rows, members, offsets), offsets.diff()


def grow(frames: Tensor, free: Tensor, threshold: float, least: int) -> Trees:
    """Hang every token on its most similar one in the frame before, where the cosine is higher.

    Where fewer than `least` tokens would be roots, the threshold is the cosine of the k-th most
    similar pair, k = T * F - least: of pairs as similar as that none hangs.

    Args:
        frames: [T, F, D] any dtype, compared in float32 (also under autocast).
        free: [T, F] bool: tokens that may hang and be hung on.
        threshold: cosine above which a token hangs.
        least: roots that must be left, those that are not free among them.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.

    Source: FlashVID, arXiv 2602.08024, tree-based spatiotemporal token merging.
    """
    steps, size = free.shape
    with torch.autocast(frames.device.type, enabled=False):
        unit = unit_rows(frames)
        alike = torch.full(free.shape, -torch.inf, device=frames.device)
        parent = torch.zeros_like(free, dtype=torch.long)
        for step in range(1, steps):
            near = unit[step] @ unit[step - 1].T
            near.masked_fill_(~(free[step][:, None] & free[step - 1]), -torch.inf)
            alike[step], parent[step] = near.max(dim=1)
    hangs = alike > threshold
    spare = free.numel() - least
    if spare <= 0:
        hangs = torch.zeros_like(hangs)
    elif spare < free.numel():
        bound = alike.flatten().sort(descending=True).values[spare - 1]
        hangs &= (hangs.sum() <= spare) | (alike > bound)
    places = torch.arange(steps * size, device=frames.device).view(steps, size)
    root, children = places.clone(), torch.zeros_like(places).flatten()
    for step in range(1, steps):
        root[step] = root[step - 1][parent[step]].where(hangs[step], root[step])
        children.index_add_(0, places[step - 1][parent[step]], hangs[step].long())
    return Trees(root.flatten(), children)


def attended_and_diverse(frames: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    """Per frame: greedy max-min of weighted distances, each pick the farthest from those before.

    The distance of token j from token i is (1 - cosine) * weight of j. The first pick is the token
    with the largest second smallest distance from any token, itself among them.

    Args:
        frames: [T, F, D] any dtype, compared in float32 (also under autocast).
        weights: [T, F] finite, any sign.
        counts: picks of each frame, from 0 to F.

    Returns:
        [T, F] bool: the picks; of equals the first is picked.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.

    Source: FlashVID, arXiv 2602.08024, attention and diversity-based token selection.
    """
    device, most = frames.device, torch.tensor(counts)
    taken = torch.zeros(weights.shape, dtype=torch.bool, device=device)
    with torch.autocast(frames.device.type, enabled=False):
        unit = unit_rows(frames)
        every = torch.arange(len(taken), device=device)
        distance = 1 - unit @ unit.mT
        distance.diagonal(dim1=1, dim2=2).zero_()  # rounding is not to decide
        distance *= weights.float()[:, None]
        score = distance.kthvalue(min(2, weights.shape[1]), dim=1).values
        near = torch.full_like(score, torch.inf)
        for number in range(max(counts)):
            pick = score.masked_fill(taken, -torch.inf).argmax(dim=1)
            taken[every, pick] |= (most > number).to(device)
            score = near = torch.minimum(near, distance[every, pick])
    return taken
