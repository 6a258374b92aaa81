"""Which visual tokens of an image a method before the projector kept, and how it grouped them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.tokens import Grid, Layout, Reduction


def open_grids(stay: Tensor, parts: Sequence[Grid]) -> tuple[Grid, ...]:
    """How the tokens lie that `stay` [N] bool: grids of whole frames, else rows.

    Grids that lose every token are left out.
    """
    grids, start = [], 0
    for grid in parts:
        frames = stay[start : start + len(grid)].view(grid.t, -1)
        whole, count = frames.all(1), int(frames.sum())
        if torch.equal(whole, frames.any(1)):
            grids.append(Grid(int(whole.sum()), grid.h, grid.w))
        else:
            grids.append(Grid(1, 1, count))
        start += len(grid)
    return tuple(grid for grid in grids if len(grid))


@dataclass(frozen=True)
class Survivors:
    """The kept visual tokens of an image. Tensors on the CPU.

    The dropped ones hold copies, so that every placeholder of the prompt has a feature; they do not
    enter the decoder.
    """

    leaders: Tensor
    """[N] int64: index of the kept token that each was merged into, the smallest member of its
    group; -1 where it was dropped."""
    grids: tuple[Grid, ...]
    """How the kept tokens lie, for each grid of the layout."""
    merged: bool
    """Whether other tokens were merged into them, rather than dropped."""

    @classmethod
    def of(cls, groups: Tensor, layout: Layout) -> Survivors:
        """Frames of a clip that leave equal numbers become rows of a grid.

        Args:
            groups: [N] int64: a number that the members of a group share, negative for tokens that
                are dropped.
            layout: of the N tokens.
        """
        groups = groups.cpu()
        places = torch.arange(len(groups))
        names, group = groups.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        first = places.new_full((len(names),), len(groups))
        leaders = first.scatter_reduce(0, group, places, "amin")[group]
        leaders[groups < 0] = -1
        alone, grids, start = leaders == places, [], 0
        for grid in layout.parts:
            counts = alone[start : start + len(grid)].view(grid.t, -1).sum(1).tolist()
            even = len(set(counts)) == 1
            grids.append(Grid(grid.t, 1, counts[0]) if even else Grid(1, 1, sum(counts)))
            start += len(grid)
        return cls(leaders, tuple(grids), bool((~alone & (leaders >= 0)).any()))

    def among(self, tokens: Tensor, layout: Layout) -> Survivors:
        """Those of them that are among some tokens [M] int64."""
        stay = torch.zeros(len(self.leaders), dtype=torch.bool)
        stay[tokens] = True
        groups = torch.where(stay[self.leaders] & (self.leaders >= 0), self.leaders, -1)
        return Survivors.of(groups, layout)

    @classmethod
    def everything(cls, layout: Layout) -> Survivors:
        """Every token is kept."""
        return cls(torch.arange(len(layout)), layout.parts, False)

    @classmethod
    def join(cls, pieces: Sequence[Survivors]) -> Survivors:
        """Of an image that was encoded in several pieces."""
        leaders, start = [], 0
        for piece in pieces:
            own = piece.leaders
            leaders.append(torch.where(own < 0, own, own + start))
            start += len(own)
        grids = tuple(grid for piece in pieces for grid in piece.grids)
        return cls(torch.cat(leaders), grids, any(piece.merged for piece in pieces))

    @property
    def alive(self) -> Tensor:
        """[K] int64, ascending: indices of the kept tokens."""
        return (self.leaders == torch.arange(len(self.leaders))).nonzero()[:, 0]

    @property
    def sizes(self) -> Tensor:
        """[K] float32: how many tokens were merged into each of them, itself included."""
        counts = self.leaders[self.leaders >= 0].bincount(minlength=len(self.leaders))
        return counts[self.alive].float()

    def whole(self, reduction: Reduction) -> Reduction:
        """The same groups with all tokens that were merged into their members before."""
        size, members = len(self.leaders), reduction.members.cpu()
        by_leader = self.leaders.argsort(stable=True)
        counts = (self.leaders + 1).bincount(minlength=size + 1)
        starts = counts.cumsum(0) - counts
        counts, starts = counts[members + 1], starts[members + 1]
        each = torch.repeat_interleave(counts)
        inside = torch.arange(len(each)) - (counts.cumsum(0) - counts)[each]
        group = torch.repeat_interleave(reduction.offsets.cpu().diff())[each]
        keys = (group * size + by_leader[starts[each] + inside]).sort().values
        ends = group.bincount(minlength=len(reduction.offsets) - 1).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return Reduction(reduction.features, keys % size, offsets, reduction.places)
