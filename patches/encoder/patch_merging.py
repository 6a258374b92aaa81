"""Merging patches between the layers of a CLIP or SigLIP tower."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import (
    BudgetError,
    UnsupportedCallError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.methods.contracts.before_projector import EncoderMethod
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.patches.encoder.merge_state import Tiles, TowerView
from vlmcompress.patches.encoder.tile_calls import check_feature_layer, layouts_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.families.vision_encoder import TILE_TOWERS
from vlmcompress.patches.families.vision_encoders import PatchEncoder
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.per_thread import PerThread
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.patches.signals.tower_attention import QUERIES_AND_KEYS, AttentionCall
from vlmcompress.tokens import Grid, Layout

_MASKED = ("eager", "sdpa")
"""Attention implementations that take a mask of numbers to be added."""


@dataclass
class _Run:
    """One feature call."""

    counts: dict[int, int]
    """Layer -> patches that leave it; fewer than before it."""
    batches: list[Tiles] = field(default_factory=list)
    """Tiles that went through a tower, one batch after the other."""
    checks: Checks = field(default_factory=Checks)
    seen: AttentionCall | None = None
    """The last attention that a merge will want to know of."""


class PatchMerging:
    """Lets an `EncoderMethod` merge the patches of each tile after some layers.

    All tiles of a call keep the same number. Where the model cuts off the padding of a picture
    afterwards, its patches leave their groups, and groups of padding alone disappear: such a
    picture keeps a somewhat other share than its tiles.

    Where the features come from hidden states of several layers, each is recorded with the groups
    of its layer, so that a token has the state of its leader's group from each.
    """

    takes_chunks = True
    dropped_before: tuple[int, int] | None = None

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        family, self._parts = parts.family, parts
        self._model, self._family, self._budget = parts.model, family, planner.budget
        self._base, self._towers = parts.base, parts.towers
        self._encoder = cast(PatchEncoder, family.encoder)
        self._method = cast(EncoderMethod, planner.pipeline.upstream)
        self._thread = PerThread()
        config: Any = self._base.config
        vision = config.vision_config
        if vision.model_type not in TILE_TOWERS:
            raise UnsupportedModelError(
                f"{self._method.name} merges in vision towers of the kinds "
                f"{', '.join(TILE_TOWERS)}, this {family.name} model has {vision.model_type}"
            )
        self._protected = TILE_TOWERS[vision.model_type]
        side = vision.image_size // vision.patch_size
        self._tile = Grid(1, side, side)
        self._layers = [attention_layers(tower) for tower in parts.towers]
        states = self._encoder.states(self._base, min(map(len, self._layers)))
        self._states, self._depth = {state for state in states if state}, max(states)
        patches = self._encoder.projected(
            self._base, "image", torch.zeros(1, len(self._tile) + self._protected, 1), {}
        )
        if patches.shape[1] != len(self._tile) or self._depth < 1:
            raise UnsupportedModelError(
                f"{self._method.name} needs features of patches alone from a layer of the vision "
                f"tower; this model has {patches.shape[1]} features of {len(self._tile)} patches "
                f"from after layer {self._depth}"
            )
        self._check_attention()

    def hook(self, attached: Attachments) -> None:
        for layers in self._layers:
            for number, (layer, attention) in enumerate(layers[: self._depth]):
                attached.before(layer, functools.partial(self._enter, number))
                attached.before(attention, functools.partial(self._look, number))
                attached.change(layer, functools.partial(self._leave, number))
                for name in QUERIES_AND_KEYS:
                    if (projection := getattr(attention, name, None)) is not None:
                        attached.look(projection, functools.partial(self._keep, number, name))

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        return layouts_of(self._parts, modality, call, self._tile, self._budget)

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        check_feature_layer(self._base, call)
        self._check_attention()
        whole = self._family.image_grid_of_tile(self._model, modality, call, self._tile)
        done = _Run(self._counts(planner.upstream(self._tile, whole)))
        self._thread.run = done
        try:
            return run(), done
        finally:
            self._thread.run = None

    def put_back(
        self, done: _Run, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        if not done.counts:
            return replace(
                encoded, survivors=[Survivors.everything(layout) for layout in encoded.layouts]
            )
        slots = done.checks.read([tiles.slot for tiles in done.batches])
        due = min(done.counts.values()) + self._protected
        if not done.batches or any(tiles.remaining != due for tiles in done.batches):
            raise UnsupportedCallError(
                f"{self._method.name} could not merge in the vision tower: call compress() before "
                "torch.compile()"
            )
        groups = torch.cat(slots)
        groups = groups + torch.arange(len(groups))[:, None] * groups.shape[1]
        # Numbers of patches, packed as the features of the patches are.
        places = torch.arange(groups.numel(), dtype=torch.float64).view(*groups.shape, 1)
        pieces = self._encoder.to_tokens(self._base, modality, places, call)
        found = []
        for piece, layout in zip(pieces, encoded.layouts, strict=True):
            place = piece[layout.visual, 0]
            source = place.long()
            alone = source.bincount().max() == 1
            if not torch.equal(source.double(), place) or not alone:
                raise UnsupportedCallError(
                    f"{self._method.name} needs one token for each patch, and {self._family.name} "
                    f"shrinks an image of this size (to {layout})"
                )
            found.append(Survivors.of(groups.flatten()[source], layout))
        return replace(encoded, survivors=found)

    def _counts(self, keep: int) -> dict[int, int]:
        """The method's schedule, without layers that merge nothing."""
        name, current = self._method.name, len(self._tile)
        if keep < 1:
            raise BudgetError(
                f"{name} leaves at least 1 token of each {self._tile} tile: the budget is too small"
            )
        schedule = self._method.schedule(self._depth, current, keep)
        counts = {}
        for layer, count in sorted(schedule.items()):
            if not (0 <= layer < self._depth and keep <= count <= current):
                raise VLMCompressError(
                    f"{name} scheduled {count} tokens after layer {layer}: possible are layers 0 "
                    f"to {self._depth - 1} and at most {current}, at the end {keep}"
                )
            if count < current:
                counts[layer] = current = count
        if current != keep:
            raise VLMCompressError(f"{name} scheduled {current} tokens, {keep} were due")
        return counts

    def _check_attention(self) -> None:
        """Proportional attention needs a mask, which FlashAttention does not take."""
        for tower in self._towers if self._method.proportional else ():
            config: Any = tower.config
            if config._attn_implementation not in _MASKED:
                raise UnsupportedModelError(
                    f"{self._method.name} attends in proportion to sizes, which the attention "
                    f"implementation {config._attn_implementation!r} of the vision tower cannot: "
                    f"use {' or '.join(_MASKED)} there, or proportional=False"
                )

    def _run(self) -> _Run | None:
        run: _Run | None = getattr(self._thread, "run", None)
        return run if run is not None and run.counts else None

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._run()
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if number == 0:
            if hidden.shape[1] != len(self._tile) + self._protected:
                raise UnsupportedCallError(
                    f"{self._method.name} needs tiles of {self._tile} patches, this call brings "
                    f"tiles of {hidden.shape[1] - self._protected}"
                )
            run.batches.append(Tiles(hidden, self._protected))
        tiles = run.batches[-1]
        if not tiles.merged:
            return None
        changed = tiles.contracted(hidden)
        mask = tiles.log_sizes(changed)[:, None, None] if self._method.proportional else None
        if not args:
            named = {"hidden_states": changed}
            return args, {**kwargs, **named, **({} if mask is None else {"attention_mask": mask})}
        if mask is None:
            return (changed, *args[1:]), kwargs
        if len(args) > 1:
            return (changed, mask, *args[2:]), kwargs
        return (changed,), {**kwargs, "attention_mask": mask}

    def _look(self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        run = self._run()
        if run is not None and number in run.counts:
            run.seen = AttentionCall(module, args[0] if args else kwargs["hidden_states"], kwargs)

    def _keep(self, number: int, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        run = self._run()
        if run is not None and run.seen is not None and number in run.counts:
            run.seen.projected[name] = output.detach()

    def _leave(self, number: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        run = self._run()
        if run is None:
            return None
        tiles = run.batches[-1]
        hidden = output[0] if isinstance(output, tuple) else output
        if number in run.counts:
            assert run.seen is not None
            view = TowerView(
                number,
                self._depth,
                hidden,
                tiles,
                run.seen,
                self._method.proportional and tiles.merged,
            )
            count, run.seen = run.counts[number], None
            with torch.no_grad(), collected(run.checks):
                merge = self._method.merge(view, count)
                merge = tiles.checked(self._method.name, merge, count, run.checks)
            hidden = tiles.merge(hidden, merge, count)
        if number + 1 in self._states and tiles.merged:
            hidden = tiles.expanded(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
