"""What becomes of groups of tokens: means, sums and provenance. Float32 inside.

Batches of B tiles with n tokens each, grouped by a matching of `vlmcompress.ops.merge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.backend import use_triton
from vlmcompress.ops.ranking import marked
from vlmcompress.tokens import Reduction


@dataclass(frozen=True)
class Groups:
    """Which of K outputs each of the n tokens of B tiles becomes part of."""

    slot: Tensor
    """[B, n] int64 in 0..K-1; every output has a token."""
    count: int
    """K."""

    @classmethod
    def of(cls, leader: Tensor, order: Tensor | None = None, count: int | None = None) -> Groups:
        """The groups of a matching.

        Args:
            leader: [B, n].
            order: [B, K] the leaders in the order of the outputs; by smallest member if None.
            count: K, where the caller knows it: then nothing waits for the device.

        Raises:
            VLMCompressError: the tiles have different numbers of groups.
        """
        places = alone(leader)
        if order is not None:
            slot = torch.zeros_like(places).scatter(1, order, alone(order)).gather(1, leader)
            return cls(slot, order.shape[1])
        first = torch.full_like(places, leader.shape[1])
        first = first.scatter_reduce(1, leader, places, "amin").gather(1, leader)
        rank = (first == places).cumsum(1) - 1
        if count is None:
            fewest, count = (int(one) + 1 for one in rank[:, -1].aminmax())
            if fewest != count:
                raise VLMCompressError(
                    f"all tiles must merge to the same number of tokens, got {fewest} to {count}"
                )
        return cls(rank.gather(1, first), count)

    @classmethod
    def single(cls, like: Tensor) -> Groups:
        """Every token of `like` [B, n, ...] for itself."""
        return cls(alone(like), like.shape[1])

    def then(self, later: Groups) -> Groups:
        """These, and their outputs grouped again."""
        return Groups(later.slot.gather(1, self.slot), later.count)

    def sum(self, values: Tensor) -> Tensor:
        """[B, K, ...] float32 sums of `values` [B, n, ...] over the members of each group."""
        shape = (len(values), self.count, *values.shape[2:])
        rows = values.reshape(self.slot.numel(), -1)
        return segment_sum(rows, *self._segments).reshape(shape)

    def mean(self, features: Tensor, weights: Tensor) -> Tensor:
        """[B, K, D] float32 means with weights; a token that is alone stays as it is, to the bit.

        Args:
            features: [B, n, D] any floating dtype.
            weights: [B, n] positive.
        """
        members, offsets = self._segments
        shares = (weights.float() / self.sum(weights).gather(1, self.slot)).flatten()[members]
        means = segment_sum(features.flatten(0, 1), members, offsets, shares)
        return means.view(len(features), self.count, -1)

    def reduction(self, features: Tensor) -> Reduction:
        """Outputs `features` [B, K, D] and their groups; the tiles are one after the other."""
        members, offsets = self._segments
        # Every output has a token, so the smallest member stands first.
        order = members[offsets[:-1]].argsort()
        slot = order.argsort()[self._flat]
        return Reduction(features.flatten(0, 1)[order], *segments(slot, len(order)))

    @cached_property
    def _flat(self) -> Tensor:
        """[B * n]: outputs counted through all tiles."""
        tiles = torch.arange(len(self.slot), device=self.slot.device)
        return (self.slot + self.count * tiles[:, None]).flatten()

    @cached_property
    def _segments(self) -> tuple[Tensor, Tensor]:
        return segments(self._flat, len(self.slot) * self.count)


def segments(slot: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Members and offsets, as in `Reduction`, of `count` outputs; `slot` [M] says each one's."""
    ordered, members = slot.sort(stable=True)
    return members, torch.searchsorted(ordered, torch.arange(count + 1, device=slot.device))


def segment_sum(
    values: Tensor, members: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Weighted sums of rows, in the order of the members: the same bits on every run.

    Args:
        values: [N, D] any floating dtype; added up in float32.
        members: [M] int64 rows of `values`.
        offsets: [K + 1] int64, from 0 to M: output k is the sum of members offsets[k] to
            offsets[k + 1].
        weights: [M] float32, of members; 1 if None.

    Returns:
        [K, D] float32.
    """
    (rows, width), outputs = values.shape, len(offsets) - 1
    sizes = {"N": rows, "M": len(members), "K": outputs, "D": width}
    if use_triton("segment_sum", values, **sizes, weighted=weights is not None):
        from vlmcompress.ops._triton.merge import segment_sum as kernel

        return kernel(values, members, offsets, weights)
    return embedding_bag(
        members,
        values.float(),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def reduce(features: Tensor, leader: Tensor, weights: Tensor) -> tuple[Tensor, Groups]:
    """Every group becomes the mean of its members, at the place of the smallest of them.

    Args:
        features: [B, n, D] any floating dtype; averaged in float32.
        leader: [B, n] a matching.
        weights: [B, n] positive.

    Returns:
        [B, K, D] in the dtype of `features`, ordered by smallest member; and the groups.

    Raises:
        VLMCompressError: the tiles have different numbers of groups.
    """
    groups = Groups.of(leader)
    return groups.mean(features, weights).to(features.dtype), groups


def halvings(tokens: int, keep: int) -> list[int]:
    """Tokens after each round, when each takes what is too much, at most every second token.

    Args:
        tokens: before the first.
        keep: to be left after the last, at least 1.
    """
    counts = []
    while tokens > max(keep, 1):
        tokens = max(keep, tokens - tokens // 2)
        counts.append(tokens)
    return counts


def at_medians(reduction: Reduction) -> Reduction:
    """The same groups, each placed at the lower median of its members and ordered by it."""
    members, sizes = reduction.members, reduction.offsets.diff()
    count = len(sizes)
    places = members[reduction.offsets[:-1] + (sizes - 1) // 2]
    order = places.argsort()
    groups = torch.arange(count, device=members.device)
    slot = order.argsort()[groups.repeat_interleave(sizes, output_size=len(members))]
    moved, offsets = segments(slot, count)
    return Reduction(reduction.features[order], members[moved], offsets, places[order])


def alone(x: Tensor) -> Tensor:
    """[B, n] int64: every token of `x` [B, n, ...] its own leader."""
    return torch.arange(x.shape[1], device=x.device).repeat(len(x), 1)


def grouped(made: Tensor, into: Tensor, count: int, members: int) -> Reduction:
    """The tokens that went into the same one are a group, whose features stand in that one's row.

    Args:
        made: [N, D]; rows that nothing went into are not read.
        into: [N] int64: the token that each went into, or -1 where it was dropped.
        count: how many tokens others (or they themselves) went into, so that nothing waits.
        members: how many were not dropped.
    """
    places = marked(into >= 0, members)
    into = into[places]
    first = into.new_full((len(made),), len(made)).scatter_reduce(0, into, places, "amin")
    place, order = first[into].sort(stable=True)
    heads = marked(first[into] == places, count)
    ends = torch.cat([places[heads], places.new_full((1,), len(made))])
    offsets = torch.searchsorted(place, ends)
    return Reduction(made[into[heads]], places[order], offsets)
