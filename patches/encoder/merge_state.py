"""The patches of a batch of tiles while they are merged, and what a method sees of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.before_projector import Merge
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.gather import take
from vlmcompress.ops.groups import Groups
from vlmcompress.ops.score import attention_received
from vlmcompress.patches.signals.tower_attention import AttentionCall


class Tiles:
    """A batch of B tiles with T tokens each, n of which remain."""

    def __init__(self, hidden: Tensor, protected: int) -> None:
        """`hidden` [B, T, D] enters the first layer; the first `protected` tokens stay alone."""
        self.protected = protected
        batch, self.total = hidden.shape[:2]
        self.slot = torch.arange(self.total, device=hidden.device).expand(batch, -1)
        """[B, T] int64: where each token of the beginning is now."""
        self.sizes = torch.ones(batch, self.total, device=hidden.device)
        """[B, n] float32: how many of those each token stands for."""

    @property
    def remaining(self) -> int:
        """n."""
        return self.sizes.shape[1]

    @property
    def merged(self) -> bool:
        """Whether n is below T."""
        return self.remaining < self.total

    def log_sizes(self, hidden: Tensor) -> Tensor:
        """[B, n] in the dtype and on the device of `hidden`."""
        return self.sizes.log().to(hidden)

    def checked(self, name: str, merge: Merge, count: int, checks: Checks) -> Merge:
        """The merge; a plain one that fits stands in for one that is not what `Merge` says.

        Args:
            name: of the method.
            merge: of the n tokens.
            count: patches that must remain.
            checks: what only the device knows is checked there.

        Raises:
            VLMCompressError: a dtype or shape is wrong.
        """
        leader, weights = merge.leader, merge.weights
        shape = self.sizes.shape
        if leader.shape != shape or weights.shape != shape or leader.dtype != torch.int64:
            raise VLMCompressError(
                f"{name} must give int64 leaders and weights of shape {tuple(shape)}, got "
                f"{leader.dtype} {tuple(leader.shape)} and {tuple(weights.shape)}"
            )
        places = torch.arange(shape[1], device=leader.device).expand(shape)
        first = self.protected
        inside = ((leader >= 0) & (leader < shape[1])).all()
        known = leader.clamp(0, shape[1] - 1)
        own = (known.gather(1, known) == known).all()
        alone = (leader[:, :first] == places[:, :first]).all() & (leader[:, first:] >= first).all()
        groups = ((leader == places).sum(1) == count + first).all()
        weighs = (weights.isfinite() & (weights > 0)).all()
        good = inside & own & alone & groups & weighs.to(leader.device)
        error = VLMCompressError(
            f"{name} must give {count} groups in every tile, each with a leader among its "
            f"members, the first {first} tokens alone, and positive weights"
        )
        checks.expect(good, lambda: error)
        stand_in = places.clamp_max(count + first - 1)
        return Merge(leader.where(good, stand_in), weights.where(good.to(weights.device), 1.0))

    def merge(self, hidden: Tensor, merge: Merge, count: int) -> Tensor:
        """[B, n, D] -> [B, count + protected, D], ordered by smallest member; weighted means."""
        device = self.slot.device
        groups = Groups.of(merge.leader.to(device), count=count + self.protected)
        self.sizes, self.slot = groups.sum(self.sizes), groups.slot.gather(1, self.slot)
        with torch.autocast(hidden.device.type, enabled=False):
            means = groups.mean(hidden.to(device), merge.weights.to(device))
        return means.to(hidden)

    def expanded(self, hidden: Tensor) -> Tensor:
        """[B, n, D] -> [B, T, D]: every token with the value of its group."""
        return take(hidden, self.slot)

    def contracted(self, hidden: Tensor) -> Tensor:
        """The other way round; as it is where it was not expanded."""
        if hidden.shape[1] == self.remaining:
            return hidden
        places = torch.arange(self.total, device=self.slot.device).expand_as(self.slot)
        first = places.new_full(self.sizes.shape, self.total)
        return take(hidden, first.scatter_reduce(1, self.slot, places, "amin"))


@dataclass(frozen=True)
class TowerView:
    """The `EncoderView` of a layer that just ran; see `methods.contracts.before_projector`."""

    layer: int
    layers: int
    hidden: Tensor
    tiles: Tiles
    seen: AttentionCall
    """What its attention was given."""
    biased: bool
    """Whether that attended in proportion to sizes."""

    @property
    def protected(self) -> int:
        return self.tiles.protected

    @property
    def sizes(self) -> Tensor:
        return self.tiles.sizes

    def keys(self) -> Tensor:
        return self._heads("k").mean(1)

    def received(self) -> Tensor:
        q, k, scaling = self._heads("q"), self._heads("k"), self.seen.scaling
        if self.biased:
            # q.k * scaling + log(size), as one more dimension of queries and keys.
            bias = self.tiles.log_sizes(k)[:, None, :, None].expand(*k.shape[:-1], 1)
            q = torch.cat([q, torch.full_like(bias, 1 / math.sqrt(scaling))], -1)
            k = torch.cat([k, bias / math.sqrt(scaling)], -1)
        return attention_received(q, k, scaling)

    def _heads(self, name: Literal["q", "k"]) -> Tensor:
        """[B, H, n, d] float32."""
        return self.seen.heads(name).float()
