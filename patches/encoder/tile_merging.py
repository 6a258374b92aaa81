"""Merging tokens between the layers of a tower that takes tiles of one size as a batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.contracts.before_projector import EncoderMethod
from vlmcompress.ops.deferred_checks import collected
from vlmcompress.ops.gather import take
from vlmcompress.patches.encoder.merge_state import (
    Merging,
    Seen,
    TowerView,
    check_proportional,
    scheduled,
)
from vlmcompress.patches.encoder.tile_calls import check_feature_layer
from vlmcompress.patches.encoder.tile_units import Ahead, TileRun, TileTower
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.hooks.arguments import hidden_in, hidden_of, with_hidden, with_hidden_in
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.unsupported import unreached
from vlmcompress.patches.signals.tower_attention import (
    AttentionCall,
    note_projections,
    open_where,
)

_MASK = "attention_mask"


class _Tiles(Merging):
    """Tiles that go through a tower together, [B, P + N * m, D].

    Patches lie in raster order until some merge, and token by token from then on.
    """

    def __init__(self, hidden: Tensor, protected: int, members: Tensor) -> None:
        """`hidden` enters the first layer; `members` [N, m] are the patches of each token."""
        super().__init__(len(hidden), len(members), protected, hidden.device)
        self._members = members.flatten().to(hidden.device)
        self._each = members.shape[1]

    def apart(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Protected tokens [B, P, D], and patches of the others [B, n, m, D]."""
        first, patches = values[:, : self.protected], values[:, self.protected :]
        if patches.shape[1] == len(self._members):
            patches = patches[:, self._members]
        return first, patches.reshape(len(patches), -1, self._each, patches.shape[-1])

    def tokens(self, values: Tensor) -> Tensor:
        """[B, P + n * m, D] -> [B, P + n, D]: means over the patches of each token."""
        first, patches = self.apart(values)
        return torch.cat([first, patches.mean(2)], 1)

    def every_size(self) -> Tensor:
        """[B, P + n]."""
        return nn.functional.pad(self.sizes, (self.protected, 0), value=1.0)

    def log_sizes(self, hidden: Tensor) -> Tensor:
        """[B, P + n * m] of the patches, in the dtype and on the device of `hidden`."""
        logs = self.sizes.log().repeat_interleave(self._each, 1)
        return nn.functional.pad(logs, (self.protected, 0)).to(hidden)

    def expanded(self, hidden: Tensor) -> Tensor:
        """[B, P + n * m, D] -> [B, T, D]: every patch with the value of its group."""
        first, patches = self.apart(hidden)
        whole = take(patches, self.slot).flatten(1, 2)
        return torch.cat([first, whole[:, self._members.argsort()]], 1)

    def contracted(self, hidden: Tensor) -> Tensor:
        """The other way round; as it is where it was not expanded."""
        if hidden.shape[1] == self.protected + self.remaining * self._each:
            return hidden
        first, patches = self.apart(hidden)
        places = torch.arange(self.total, device=self.slot.device).expand_as(self.slot)
        heads = places.new_full(self.sizes.shape, self.total)
        heads = heads.scatter_reduce(1, self.slot, places, "amin")
        return torch.cat([first, take(patches, heads).flatten(1, 2)], 1)


@dataclass
class _Run(TileRun):
    counts: dict[int, int]
    """Layer -> tokens that leave it; fewer than before it."""
    batches: list[_Tiles] = field(default_factory=list)
    """Tiles that went through a tower, one batch after the other."""
    seen: AttentionCall | None = None
    """The last attention that a merge will want to know of."""


class TileTowerMerging(TileTower[_Run]):
    """Lets an `EncoderMethod` merge the tokens of each tile after some layers.

    All tiles of a call keep the same number. Where the model cuts off the padding of a picture
    afterwards, its patches leave their groups, and groups of padding alone disappear: such a
    picture keeps a somewhat other share than its tiles.

    Where the features come from hidden states of several layers, each is recorded with the groups
    of its layer, so that a token has the state of its leader's group from each.
    """

    takes_chunks = True

    def __init__(self, parts: ModelParts, planner: Planner, ahead: Ahead) -> None:
        self._method = cast(EncoderMethod, planner.pipeline.upstream)
        super().__init__(parts, planner, ahead, "merges")
        check_proportional(self._method, parts.towers)
        for _, attention in (one for layers in self._layers for one in layers):
            known = inspect.signature(attention.forward).parameters
            if self._method.proportional and _MASK not in known:
                raise UnsupportedModelError(
                    f"{self._name} attends in proportion to sizes, and the attention of this "
                    f"{self._family.name} model's vision tower takes no mask: give "
                    "proportional=False"
                )

    def hook(self, attached: Attachments) -> None:
        for layers in self._layers:
            for number, (layer, attention) in enumerate(layers[: self._depth]):
                attached.before(layer, functools.partial(self._enter, number))
                attached.before(attention, functools.partial(self._look, number))
                attached.change(layer, functools.partial(self._leave, number))
                note_projections(attached, attention, self._seen)

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        check_feature_layer(self._base, call)
        check_proportional(self._method, self._parts.towers)
        keep = self._count(modality, call, planner)
        counts = scheduled(self._method, self._depth, self._tile, keep)
        return self._through(run, _Run(not counts, counts))

    def _groups(self, done: _Run) -> Tensor:
        slots = done.checks.read([tiles.slot for tiles in done.batches])
        due = min(done.counts.values())
        if not done.batches or any(tiles.remaining != due for tiles in done.batches):
            raise unreached(self._name)
        groups = torch.cat(slots)
        return groups + torch.arange(len(groups))[:, None] * groups.shape[1]

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._running.value
        if run is None:
            return None
        hidden = hidden_of(args, kwargs)
        if number == 0:
            self._check_size(hidden)
            run.batches.append(_Tiles(hidden, self._protected, self._members))
        changed = run.batches[-1].contracted(hidden)
        return with_hidden(args, kwargs, changed)

    def _look(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Before an attention: what a merge wants to know, and its mask."""
        run = self._running.value
        if run is None:
            return None
        tiles, mask = run.batches[-1], kwargs.get(_MASK)
        hidden = hidden_of(args, kwargs)
        if number in run.counts:
            run.seen = AttentionCall(module, hidden, {**kwargs, _MASK: None})
        if number == 0 and mask is not None:
            run.checks.expect(open_where(mask).all(), self._padded)
        if not tiles.merged:
            return None
        changed = None
        if self._method.proportional:
            changed = tiles.log_sizes(hidden)[:, None, None]
        return args, {**kwargs, **({} if mask is changed is None else {_MASK: changed})}

    def _padded(self) -> UnsupportedCallError:
        return UnsupportedCallError(
            f"{self._name} merges in tiles without padding, and some of the patches of this call "
            "are masked"
        )

    def _seen(self) -> AttentionCall | None:
        run = self._running.value
        return None if run is None else run.seen

    def _leave(self, number: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        run = self._running.value
        if run is None:
            return None
        tiles = run.batches[-1]
        hidden = hidden_in(output)
        if number in run.counts:
            hidden = self._merged(run, tiles, number, hidden)
        if number + 1 in self._states and tiles.merged:
            hidden = tiles.expanded(hidden)
        return with_hidden_in(output, hidden)

    def _merged(self, run: _Run, tiles: _Tiles, number: int, hidden: Tensor) -> Tensor:
        """[B, P + n * m, D] after a layer -> the same of fewer tokens."""
        assert run.seen is not None
        count, seen, run.seen = run.counts[number], run.seen, None
        biased = self._method.proportional and tiles.merged
        view = TowerView(
            number,
            self._depth,
            self._protected,
            tiles.tokens(hidden),
            tiles.every_size(),
            Seen(seen, tiles.log_sizes(hidden) if biased else None),
            tiles.tokens,
        )
        with torch.no_grad(), collected(run.checks):
            merge = self._method.merge(view, count)
            merge = tiles.checked(self._name, merge, count, run.checks)
        first, patches = tiles.apart(hidden)
        means, _ = tiles.merge(patches, merge, count)
        return torch.cat([first, means.flatten(1, 2)], 1)
