"""Dropping patches between the layers of a tower that takes tiles of one size as a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.contracts.answers import rows_of_indices
from vlmcompress.methods.contracts.before_projector import TokenPatches, TowerDropper
from vlmcompress.ops.deferred_checks import collected
from vlmcompress.ops.gather import take
from vlmcompress.patches.encoder.tile_calls import check_feature_layer
from vlmcompress.patches.encoder.tile_units import Ahead, TileRun, TileTower
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.hooks.arguments import hidden_in, hidden_of, with_hidden, with_hidden_in
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.unsupported import unreached


@dataclass
class _Batch:
    """Tiles that go through a tower together."""

    kept: Tensor
    """[B, K] int64: the tokens of each tile that stay."""
    places: Tensor
    """[B, n] int64: where these patches are in the tower, ascending, CLS among them."""


@dataclass
class _Run(TileRun):
    count: int
    """Tokens that each tile keeps."""
    batches: list[_Batch] = field(default_factory=list)


class TileTowerDropping(TileTower[_Run]):
    """Lets a `TowerDropper` say which tokens of each tile go on through the tower.

    All tiles of a call keep the same number. Behind the feature layer the places of the others are
    filled with zeros, so that shuffling, pooling and projecting stay as they are; what becomes of
    them does not enter the decoder.
    """

    takes_chunks = False

    def __init__(self, parts: ModelParts, planner: Planner, ahead: Ahead) -> None:
        self._method = cast(TowerDropper, planner.pipeline.upstream)
        if planner.budget is None and self._method.adaptive:
            raise UnsupportedModelError(
                f"{self._method.name}: the vision tower of this {parts.family.name} model encodes "
                'tiles together, which keep equally many tokens: give a budget such as "25%" '
                "instead of a threshold"
            )
        super().__init__(parts, planner, ahead, "drops")
        self._first = self._method.before(self._depth)
        self.dropped_before = (self._first, self._depth)
        self._method.suits(self._block**2)

    def hook(self, attached: Attachments) -> None:
        for layers in self._layers:
            for number, (layer, _) in enumerate(layers[: self._depth]):
                if number >= self._first:
                    attached.before(layer, functools.partial(self._enter, number))
                    attached.change(layer, functools.partial(self._leave, number))

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        check_feature_layer(self._base, call)
        count = self._count(modality, call, planner)
        return self._through(run, _Run(count == len(self._tile), count))

    def _groups(self, done: _Run) -> Tensor:
        done.checks.settle()
        if not done.batches:
            raise unreached(self._name)
        kept = torch.cat([batch.kept.cpu() for batch in done.batches])
        alive = torch.zeros(len(kept), len(self._tile), dtype=torch.bool).scatter_(1, kept, True)
        return torch.where(alive, torch.arange(alive.numel()).view(alive.shape), -1)

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._running.value
        if run is None:
            return None
        hidden = hidden_of(args, kwargs)
        if number == self._first:
            run.batches.append(self._chosen(run, hidden))
        if not self._method.shortens:
            return None
        places = run.batches[-1].places
        changed = take(hidden, places) if hidden.shape[1] > places.shape[1] else hidden
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        closed = None if mask is None else self._mask_of(mask, places)
        if len(args) > 1:
            return (changed, closed, *args[2:]), kwargs
        if mask is not None:
            kwargs = {**kwargs, "attention_mask": closed}
        return with_hidden(args, kwargs, changed)

    @torch.no_grad()
    def _chosen(self, run: _Run, hidden: Tensor) -> _Batch:
        """What stays of a batch [B, T, D] that enters the first layer that works less."""
        batch = len(hidden)
        self._check_size(hidden)
        members = self._members.to(hidden.device) + self._protected
        tokens = hidden[:, members.flatten()].view(batch, *members.shape, hidden.shape[-1])
        with collected(run.checks):
            found = self._method.select(TokenPatches(tokens, self._tile), run.count)
            shape = (batch, run.count)
            name = self._method.name
            kept = rows_of_indices(name, found, shape, len(self._tile), run.checks)
        patches = members[kept].flatten(1).sort(1).values
        first = torch.arange(self._protected, device=hidden.device).expand(batch, -1)
        return _Batch(kept, torch.cat([first, patches], 1))

    def _mask_of(self, mask: Any, places: Tensor) -> Tensor:
        """The mask of the patches that stay: [B, T], or [B, 1, Q, T] with Q = 1 or T."""
        total = self._protected + self._patches
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4) or mask.shape[-1] != total:
            raise UnsupportedCallError(
                f"{self._method.name} cannot shorten the attention mask of this vision tower: use "
                "sdpa, eager or flash_attention_2 there"
            )
        places = places.to(mask.device)
        closed: Tensor = mask.expand(len(places), *mask.shape[1:])
        if closed.dim() == 2:
            return closed.gather(1, places)
        heads, queries = closed.shape[1:3]
        if queries == total:
            closed = closed.gather(2, places[:, None, :, None].expand(-1, heads, -1, total))
            queries = places.shape[1]
        return closed.gather(3, places[:, None, None].expand(-1, heads, queries, -1))

    def _leave(self, number: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        run = self._running.value
        if run is None or number + 1 not in self._states or not self._method.shortens:
            return None
        hidden = hidden_in(output)
        places = run.batches[-1].places[..., None].expand(-1, -1, hidden.shape[-1])
        whole = hidden.new_zeros(len(hidden), self._protected + self._patches, hidden.shape[-1])
        whole.scatter_(1, places, hidden)
        return with_hidden_in(output, whole)
