"""Dropping patches between the layers of a tower that takes tiles of one size as a batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.methods.contracts.answers import rows_of_indices
from vlmcompress.methods.contracts.before_projector import TokenPatches, TowerDropper
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.ops.gather import take
from vlmcompress.patches.encoder.tile_calls import check_feature_layer, layouts_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.families.vision_encoder import block_means
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.per_thread import PerThread
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Grid, Layout

Ahead = Callable[[], Sequence[Layout]]
"""How the images of the running call lie, from its arguments alone."""


@dataclass
class _Batch:
    """Tiles that go through a tower together."""

    kept: Tensor
    """[B, K] int64: the tokens of each tile that stay."""
    places: Tensor
    """[B, n] int64: where these patches are in the tower, ascending, CLS among them."""


@dataclass
class _Run:
    """One feature call."""

    count: int
    """Tokens that each tile keeps."""
    batches: list[_Batch] = field(default_factory=list)
    checks: Checks = field(default_factory=Checks)


class TileTowerDropping:
    """Lets a `TowerDropper` say which tokens of each tile go on through the tower.

    All tiles of a call keep the same number. Behind the feature layer the places of the others are
    filled with zeros, so that shuffling, pooling and projecting stay as they are; what becomes of
    them does not enter the decoder.
    """

    takes_chunks = False

    def __init__(self, parts: ModelParts, planner: Planner, ahead: Ahead) -> None:
        self._model, self._family, self._base = parts.model, parts.family, parts.base
        self._encoder, self._ahead = parts.family.encoder, ahead
        self._parts, self._budget = parts, planner.budget
        self._method = cast(TowerDropper, planner.pipeline.upstream)
        if planner.budget is None and self._method.adaptive:
            raise UnsupportedModelError(
                f"{self._method.name}: the vision tower of this {parts.family.name} model encodes "
                'tiles together, which keep equally many tokens: give a budget such as "25%" '
                "instead of a threshold"
            )
        self._alone = planner.pipeline.projector is None
        self._thread = PerThread()
        self._layers = [attention_layers(tower) for tower in parts.towers]
        count = min(map(len, self._layers))
        self._states = set(self._encoder.states(self._base, count))
        self._depth = max(self._states)
        self._first = self._method.before(self._depth)
        self.dropped_before: tuple[int, int] | None = (self._first, self._depth)
        self._protected = self._encoder.cls_tokens(self._base)
        self._block = math.isqrt(self._encoder.patches(self._base))
        self._patches = self._encoder.tile(self._base) or 0
        if not self._patches:
            raise UnsupportedModelError(
                f"{self._method.name} drops in vision towers that take tiles of one size; that of "
                f"this {self._family.name} model takes pictures of any"
            )
        side = math.isqrt(self._patches) // self._block
        self._tile = Grid(1, side, side)
        rows, columns = (torch.arange(side * self._block) // self._block for _ in range(2))
        self._token = (rows[:, None] * side + columns).flatten()
        """[P] int64: the token that each patch of a tile belongs to."""
        self._members = self._token.argsort(stable=True).view(len(self._tile), -1)
        """[N, m] int64: the patches of each token."""
        self._check_blocks()
        self._method.suits(self._block**2)

    def _check_blocks(self) -> None:
        """Raise unless square blocks of patches become one token each."""
        side = self._tile.h * self._block
        where = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()[None]
        cls = where.new_zeros(1, self._protected, 2)
        known = side * side == self._patches and self._depth > self._first
        if known:
            found = self._encoder.projected(self._base, "image", torch.cat([cls, where], 1), {})
            expected = block_means(where, self._block)
            known = found.shape == expected.shape and torch.equal(found, expected)
        if not known:
            raise UnsupportedModelError(
                f"{self._method.name} drops in vision towers whose tokens are square blocks of "
                f"patches; this {self._family.name} model has others"
            )

    def hook(self, attached: Attachments) -> None:
        for layers in self._layers:
            for number, (layer, _) in enumerate(layers[: self._depth]):
                if number >= self._first:
                    attached.before(layer, functools.partial(self._enter, number))
                    attached.change(layer, functools.partial(self._leave, number))

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        return layouts_of(self._parts, modality, call, self._tile, self._budget)

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        check_feature_layer(self._base, call)
        count = planner.upstream(self._tile, self._whole(modality, call, planner))
        if count < 1:
            raise BudgetError(
                f"{self._method.name} leaves at least 1 token of each {self._tile} tile: the "
                "budget is too small"
            )
        done = _Run(min(count, len(self._tile)))
        self._thread.run = None if done.count == len(self._tile) else done
        try:
            return run(), done
        finally:
            self._thread.run = None

    def _whole(
        self, modality: str, call: Mapping[str, Any], planner: Planner
    ) -> Layout | Grid | None:
        """The image or clip that every tile of the call belongs to; None where it may be any.

        Raises:
            BudgetError: a count of tokens for images of several sizes.
        """
        whole = self._family.image_grid_of_tile(self._model, modality, call, self._tile)
        budget = planner.budget
        if whole is not None or budget is None or budget.unit != "tokens":
            return whole
        images = sorted(self._ahead(), key=len)
        if self._alone and len(images[0]) != len(images[-1]):
            raise BudgetError(
                f"budget {budget} is another share of images of {len(images[0])} and of "
                f"{len(images[-1])} tokens, and tiles that are encoded together keep equally many: "
                'give a share such as "25%", or a method behind it such as '
                f'"{self._method.name}+divprune"'
            )
        return images[0]

    def put_back(
        self, done: _Run, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        if done.count == len(self._tile):
            whole = [Survivors.everything(layout) for layout in encoded.layouts]
            return replace(encoded, survivors=whole)
        done.checks.settle()
        if not done.batches:
            raise UnsupportedCallError(
                f"{self._method.name} could not drop in the vision tower: call compress() before "
                "torch.compile()"
            )
        kept = torch.cat([batch.kept.cpu() for batch in done.batches])
        alive = torch.zeros(len(kept), len(self._tile), dtype=torch.bool).scatter_(1, kept, True)
        # Numbers of tokens, packed as the features of their patches are.
        numbers = torch.arange(alive.numel(), dtype=torch.float64).view(alive.shape)
        values = torch.nn.functional.pad(numbers[:, self._token], (self._protected, 0))
        pieces = self._encoder.to_tokens(self._base, modality, values[..., None], call)
        found = []
        for piece, layout in zip(pieces, encoded.layouts, strict=True):
            place = piece[layout.visual, 0]
            source = place.long()
            if not torch.equal(source.double(), place) or source.bincount().max() > 1:
                raise UnsupportedCallError(
                    f"{self._method.name} needs one token for each block of patches, and "
                    f"{self._family.name} shrinks an image of this size (to {layout})"
                )
            groups = torch.where(alive.flatten()[source], source, -1)
            found.append(Survivors.of(groups, layout))
        return replace(encoded, survivors=found)

    def _run(self) -> _Run | None:
        run: _Run | None = getattr(self._thread, "run", None)
        return run

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._run()
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
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
        return ((changed,), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    @torch.no_grad()
    def _chosen(self, run: _Run, hidden: Tensor) -> _Batch:
        """What stays of a batch [B, T, D] that enters the first layer that works less."""
        batch, total = hidden.shape[:2]
        if total != self._protected + self._patches:
            raise UnsupportedCallError(
                f"{self._method.name} needs tiles of {self._patches} patches, this call brings "
                f"tiles of {total - self._protected}"
            )
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
        run = self._run()
        if run is None or number + 1 not in self._states or not self._method.shortens:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        places = run.batches[-1].places[..., None].expand(-1, -1, hidden.shape[-1])
        whole = hidden.new_zeros(len(hidden), self._protected + self._patches, hidden.shape[-1])
        whole.scatter_(1, places, hidden)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole
