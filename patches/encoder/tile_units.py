"""How the patches of a tile become tokens: what methods between the layers of its tower share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.patches.encoder.tile_calls import layouts_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.families.vision_encoder import block_means
from vlmcompress.patches.hooks.per_thread import During
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Grid, Layout

Ahead = Callable[[], Sequence[Layout]]
"""How the images of the running call lie, from its arguments alone."""


@dataclass
class TileRun:
    """One feature call."""

    idle: bool
    """Whether everything stays."""
    checks: Checks = field(default_factory=Checks, kw_only=True)


Run = TypeVar("Run", bound=TileRun)


class TileTower(ABC, Generic[Run]):
    """A tower that takes tiles of one size, square blocks of whose patches become a token each.

    All tiles of a call keep equally many tokens.
    """

    dropped_before: tuple[int, int] | None = None

    def __init__(self, parts: ModelParts, planner: Planner, ahead: Ahead, acts: str) -> None:
        """Find out how tokens are made.

        Args:
            parts: of the model.
            planner: with the method.
            ahead: gives the layouts of the images of the running call.
            acts: what the method does there, for messages.

        Raises:
            UnsupportedModelError: tiles are of any size, or tokens no square blocks.
        """
        self._model, self._family, self._base = parts.model, parts.family, parts.base
        self._encoder, self._ahead = parts.family.encoder, ahead
        self._parts, self._budget = parts, planner.budget
        self._name = planner.pipeline.methods[0].name
        self._alone = planner.pipeline.projector is None
        self._running = During[Run]()
        self._layers = [attention_layers(tower) for tower in parts.towers]
        self._states = set(self._encoder.states(self._base, min(map(len, self._layers))))
        self._depth = max(self._states)
        self._protected = self._encoder.cls_tokens(self._base)
        self._block = math.isqrt(self._encoder.patches(self._base))
        self._patches = self._encoder.tile(self._base) or 0
        if not self._patches:
            raise UnsupportedModelError(
                f"{self._name} {acts} in vision towers that take tiles of one size; that of "
                f"this {self._family.name} model takes pictures of any"
            )
        side = math.isqrt(self._patches) // self._block
        self._tile = Grid(1, side, side)
        rows, columns = (torch.arange(side * self._block) // self._block for _ in range(2))
        self._token = (rows[:, None] * side + columns).flatten()
        """[P] int64: the token that each patch of a tile belongs to."""
        self._members = self._token.argsort(stable=True).view(len(self._tile), -1)
        """[N, m] int64: the patches of each token."""
        self._check_blocks(acts)

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        """How the placeholders of a feature call lie."""
        return layouts_of(self._parts, modality, call, self._tile, self._budget)

    def _through(self, run: Callable[..., Any], done: Run) -> tuple[Any, Run]:
        """What a feature call gives while the hooks act on `done`, which they need not if idle."""
        with self._running.holding(None if done.idle else done):
            return run(), done

    def put_back(
        self, done: Run, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        if done.idle:
            survivors = [Survivors.everything(layout) for layout in encoded.layouts]
        else:
            groups = self._groups(done)
            survivors = self._survivors(groups, modality, call, encoded.layouts)
        return replace(encoded, survivors=survivors)

    @abstractmethod
    def _groups(self, done: Run) -> Tensor:
        """[B, N] int64, as `_survivors` takes them, of all tiles of a call.

        Raises:
            UnsupportedCallError: the hooks did not meet them.
        """

    def _check_blocks(self, acts: str) -> None:
        """Raise unless square blocks of patches become one token each."""
        side = self._tile.h * self._block
        where = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()[None]
        cls = where.new_zeros(1, self._protected, 2)
        known = side * side == self._patches and self._depth > 0
        if known:
            found = self._encoder.projected(self._base, "image", torch.cat([cls, where], 1), {})
            expected = block_means(where, self._block)
            known = found.shape == expected.shape and torch.equal(found, expected)
        if not known:
            raise UnsupportedModelError(
                f"{self._name} {acts} in vision towers whose tokens are square blocks of "
                f"patches; this {self._family.name} model has others"
            )

    def _check_size(self, hidden: Tensor) -> None:
        """Raise unless `hidden` [B, T, D] are whole tiles.

        Raises:
            UnsupportedCallError: they are larger or smaller.
        """
        if hidden.shape[1] != self._protected + self._patches:
            raise UnsupportedCallError(
                f"{self._name} needs tiles of {self._patches} patches, this call brings "
                f"tiles of {hidden.shape[1] - self._protected}"
            )

    def _count(self, modality: str, call: Mapping[str, Any], planner: Planner) -> int:
        """Tokens that are left of each tile.

        Raises:
            BudgetError: not one, or a count of tokens for images of several sizes.
        """
        count = planner.upstream(self._tile, self._whole(modality, call, planner))
        if count < 1:
            raise BudgetError(
                f"{self._name} leaves at least 1 token of each {self._tile} tile: the "
                "budget is too small"
            )
        return min(count, len(self._tile))

    def _whole(
        self, modality: str, call: Mapping[str, Any], planner: Planner
    ) -> Layout | Grid | None:
        """The image or clip that every tile of the call belongs to; None where it may be any."""
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
                f'"{self._name}+divprune"'
            )
        return images[0]

    def _survivors(
        self, groups: Tensor, modality: str, call: Mapping[str, Any], layouts: Sequence[Layout]
    ) -> list[Survivors]:
        """What is left of each image.

        Args:
            groups: [B, N] int64: a number that the tokens of a group share, negative for those that
                were dropped.
            modality: "image" or "video".
            call: arguments of the feature call.
            layouts: of the images.
        """
        # Numbers of tokens, packed as the features of their patches are.
        numbers = torch.arange(groups.numel(), dtype=torch.float64).view(groups.shape)
        values = torch.nn.functional.pad(numbers[:, self._token], (self._protected, 0))
        pieces = self._encoder.to_tokens(self._base, modality, values[..., None], call)
        found = []
        for piece, layout in zip(pieces, layouts, strict=True):
            place = piece[layout.visual, 0]
            source = place.long()
            if not torch.equal(source.double(), place) or source.bincount().max() > 1:
                raise UnsupportedCallError(
                    f"{self._name} needs one token for each block of patches, and "
                    f"{self._family.name} shrinks an image of this size (to {layout})"
                )
            found.append(Survivors.of(groups.flatten()[source], layout))
        return found
