"""The tokens of a batch of tiles while they are merged, and what a method sees of them.

A token is what the projector makes one feature of: one patch, or a block of m of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.errors import BudgetError, UnsupportedModelError, VLMCompressError
from vlmcompress.methods.contracts.before_projector import EncoderMethod, Merge
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.groups import Groups
from vlmcompress.patches.signals.tower_attention import AttentionCall
from vlmcompress.tokens import Grid

_MASKED = ("eager", "sdpa")
"""Attention implementations that take a mask of numbers to be added."""


def scheduled(method: EncoderMethod, depth: int, tile: Grid, keep: int) -> dict[int, int]:
    """Layer -> tokens of a tile that leave it; layers that merge nothing are left out.

    Raises:
        BudgetError: not one token would be left, or the method cannot leave so few.
        VLMCompressError: the method's schedule is none.
    """
    name, current = method.name, len(tile)
    if keep < 1:
        raise BudgetError(
            f"{name} leaves at least 1 token of each {tile} tile: the budget is too small"
        )
    counts = {}
    for layer, count in sorted(method.schedule(depth, current, keep).items()):
        if not (0 <= layer < depth and keep <= count <= current):
            raise VLMCompressError(
                f"{name} scheduled {count} tokens after layer {layer}: possible are layers 0 "
                f"to {depth - 1} and at most {current}, at the end {keep}"
            )
        if count < current:
            counts[layer] = current = count
    if current != keep:
        raise VLMCompressError(f"{name} scheduled {current} tokens, {keep} were due")
    return counts


def check_proportional(method: EncoderMethod, towers: Iterable[nn.Module]) -> None:
    """Proportional attention needs a mask, which FlashAttention does not take.

    Raises:
        UnsupportedModelError: the method wants it, and a tower is set to another implementation.
    """
    for tower in towers if method.proportional else ():
        config: Any = tower.config
        if config._attn_implementation not in _MASKED:
            raise UnsupportedModelError(
                f"{method.name} attends in proportion to sizes, which the attention "
                f"implementation {config._attn_implementation!r} of the vision tower cannot: "
                f"use {' or '.join(_MASKED)} there, or proportional=False"
            )


class Merging:
    """B tiles of N tokens each, n of which remain."""

    def __init__(self, batch: int, tokens: int, protected: int, device: torch.device) -> None:
        """None is merged yet. `protected` tokens that are no patches stand before each tile."""
        self.protected, self.total = protected, tokens
        self.slot = torch.arange(tokens, device=device).expand(batch, -1)
        """[B, N] int64: where each token of the beginning is now."""
        self.sizes = torch.ones(batch, tokens, device=device)
        """[B, n] float32: how many of those each token stands for."""

    @property
    def remaining(self) -> int:
        """n."""
        return self.sizes.shape[1]

    @property
    def merged(self) -> bool:
        """Whether n is below N."""
        return self.remaining < self.total

    def checked(self, name: str, merge: Merge, count: int, checks: Checks) -> Merge:
        """The merge; a plain one that fits stands in for one that is not what `Merge` says.

        Args:
            name: of the method.
            merge: of the protected tokens and the n others.
            count: tokens that must remain, without the protected ones.
            checks: what only the device knows is checked there.

        Raises:
            VLMCompressError: a dtype or shape is wrong.
        """
        leader, weights, first = merge.leader, merge.weights, self.protected
        shape = (len(self.sizes), first + self.remaining)
        if leader.shape != shape or weights.shape != shape or leader.dtype != torch.int64:
            raise VLMCompressError(
                f"{name} must give int64 leaders and weights of shape {shape}, got "
                f"{leader.dtype} {tuple(leader.shape)} and {tuple(weights.shape)}"
            )
        places = torch.arange(shape[1], device=leader.device).expand(shape)
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

    def merge(self, patches: Tensor, merge: Merge, count: int) -> tuple[Tensor, Groups]:
        """Every group becomes the weighted mean of its members, patch by patch.

        Args:
            patches: [B, n, m, D] of the tokens.
            merge: see `checked`.
            count: tokens that remain.

        Returns:
            [B, count, m, D], ordered by smallest member; and the groups.
        """
        device, first = self.slot.device, self.protected
        groups = Groups.of(merge.leader[:, first:].to(device) - first, count=count)
        self.sizes, self.slot = groups.sum(self.sizes), groups.slot.gather(1, self.slot)
        with torch.autocast(patches.device.type, enabled=False):
            means = groups.mean(patches.flatten(2).to(device), merge.weights[:, first:].to(device))
        return means.to(patches).view(len(means), count, *patches.shape[2:]), groups


class Seen:
    """What an attention was given, worked out once, and only as far as it is asked for."""

    def __init__(self, call: AttentionCall, bias: Tensor | None) -> None:
        """`bias` [B, n] or [P] was added to the logits of each key, where it was."""
        self._call, self._bias = call, bias

    @cached_property
    def keys(self) -> Tensor:
        """[B, n, d] or [P, d] float32: mean over heads."""
        return self._call.heads("k").float().mean(-3)

    @cached_property
    def received(self) -> Tensor:
        """[B, n] or [P] float32."""
        return self._call.received(self._bias)


@dataclass(frozen=True)
class TowerView:
    """The `EncoderView` of a layer that just ran; see `methods.contracts.before_projector`."""

    layer: int
    layers: int
    protected: int
    hidden: Tensor
    sizes: Tensor
    seen: Seen
    tokens: Callable[[Tensor], Tensor]
    """Values of what the attention was given, [..., D], as values of tokens [B, n, D]."""

    def keys(self) -> Tensor:
        return self.tokens(self.seen.keys)

    def received(self) -> Tensor:
        return self.tokens(self.seen.received[..., None])[..., 0]
