"""What becomes of groups of tokens: means, sums and provenance. Float32 inside.

Batches of B tiles with n tokens each, grouped by a matching of `vlmcompress.ops.merge`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.tokens import Reduction


@dataclass(frozen=True)
class Groups:
    """Which of K outputs each of the n tokens of B tiles becomes part of."""

    slot: Tensor
    """[B, n] int64 in 0..K-1; every output has a token."""
    count: int
    """K."""

    @classmethod
    def of(cls, leader: Tensor, order: Tensor | None = None) -> Groups:
        """The groups of a matching.

        Args:
            leader: [B, n].
            order: [B, K] the leaders in the order of the outputs; by smallest member if None.

        Raises:
            VLMCompressError: the tiles have different numbers of groups.
        """
        places = alone(leader)
        if order is None:
            first = torch.full_like(places, leader.shape[1])
            first = first.scatter_reduce(1, leader, places, "amin").gather(1, leader)
            rank = (first == places).cumsum(1) - 1
            slot = rank.gather(1, first)
            counts = rank[:, -1] + 1
        else:
            counts = torch.full_like(places[:, 0], order.shape[1])
            slot = torch.zeros_like(places).scatter(1, order, alone(order)).gather(1, leader)
        fewest, most = int(counts.min()), int(counts.max())
        if fewest != most:
            raise VLMCompressError(
                f"all tiles must merge to the same number of tokens, got {fewest} to {most}"
            )
        return cls(slot, most)

    @classmethod
    def single(cls, like: Tensor) -> Groups:
        """Every token of `like` [B, n, ...] for itself."""
        return cls(alone(like), like.shape[1])

    def then(self, later: Groups) -> Groups:
        """These, and their outputs grouped again."""
        return Groups(later.slot.gather(1, self.slot), later.count)

    def sum(self, values: Tensor) -> Tensor:
        """[B, K, ...] float32 sums of `values` [B, n, ...] over the members of each group."""
        flat = self._flat()
        # Unlike scattered additions this gives the same sums again on a GPU.
        sums = torch.segment_reduce(
            values.float().flatten(0, 1)[flat.argsort(stable=True)],
            "sum",
            lengths=torch.bincount(flat, minlength=len(values) * self.count),
            axis=0,
        )
        return sums.reshape(len(values), self.count, *values.shape[2:])

    def mean(self, features: Tensor, weights: Tensor) -> Tensor:
        """[B, K, D] float32 means with weights; a token that is alone stays as it is, to the bit.

        Args:
            features: [B, n, D] any floating dtype.
            weights: [B, n] positive.
        """
        weights = weights.float()
        shares = weights / self.sum(weights).gather(1, self.slot)
        return self.sum(features.float() * shares[..., None])

    def reduction(self, features: Tensor) -> Reduction:
        """Outputs `features` [B, K, D] and their groups; the tiles are one after the other."""
        flat = self._flat()
        places = torch.arange(len(flat), device=flat.device)
        first = places.new_full((len(features) * self.count,), len(flat))
        order = first.scatter_reduce(0, flat, places, "amin").argsort()
        flat = order.argsort()[flat]
        ends = torch.bincount(flat, minlength=len(order)).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return Reduction(features.flatten(0, 1)[order], flat.argsort(stable=True), offsets)

    def _flat(self) -> Tensor:
        """[B * n]: outputs counted through all tiles."""
        tiles = torch.arange(len(self.slot), device=self.slot.device)
        return (self.slot + self.count * tiles[:, None]).flatten()


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


def alone(x: Tensor) -> Tensor:
    """[B, n] int64: every token of `x` [B, n, ...] its own leader."""
    return torch.arange(x.shape[1], device=x.device).repeat(len(x), 1)
