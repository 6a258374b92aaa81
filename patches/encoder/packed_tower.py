"""Dropping patches between the layers of a tower that takes those of all images as one sequence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError, UnsupportedModelError
from vlmcompress.methods.contracts.answers import indices, rows_of_indices
from vlmcompress.methods.contracts.before_projector import TokenPatches
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.ops.questions import Asking, abreast, answered
from vlmcompress.patches.encoder.patch_dropping import PackedRun, PackedTower
from vlmcompress.patches.encoder.qwen_patches import QwenPatches
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.hooks.arguments import hidden_of
from vlmcompress.tokens import Grid

_SEGMENTS = ("cu_seqlens", "position_embeddings")
"""What tells a layer which patches see one another, and where they are."""


@dataclass
class _Run(PackedRun):
    grids: Sequence[Grid] = ()
    counts: Sequence[int] = ()
    """Tokens that stay of each image or clip."""
    order: Sequence[Tensor] = ()
    """Of each [N] int64: the number of each token's block in the tower."""

    open_ended: bool = False
    """Whether the counts are upper bounds: content decides."""

    @property
    def idle(self) -> bool:
        if self.open_ended:
            return super().idle
        return all(map(int.__eq__, map(len, self.grids), self.counts))


def check_segments(name: str, acts: str, parts: ModelParts) -> None:
    """Raise unless the layers of the towers are told what sees what, and where it is.

    Args:
        name: of the method.
        acts: what it does there.
        parts: of the model.

    Raises:
        UnsupportedModelError: one is not.
    """
    for layer, _ in (one for tower in parts.towers for one in attention_layers(tower)):
        known = inspect.signature(layer.forward).parameters
        if not all(argument in known for argument in _SEGMENTS):
            raise UnsupportedModelError(
                f"{name} {acts} between layers that take {' and '.join(_SEGMENTS)}, and "
                f"{type(layer).__name__} does not"
            )


class PackedTowerDropping(PackedTower[_Run]):
    """Lets a `TowerDropper` say which tokens go on through the tower."""

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        super().__init__(parts, planner)
        self._by_content = planner.budget is None and self._method.adaptive
        check_segments(self._method.name, "drops", parts)
        depth = min(len(attention_layers(tower)) for tower in parts.towers)
        self._first = self._method.before(depth)
        self.dropped_before = self._first, depth
        self._method.suits(parts.family.encoder.patches(parts.base))

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        patches = QwenPatches.of(self._model, self._family, modality, call)
        grids = patches.grids
        counts = [min(planner.upstream(grid, grid), len(grid)) for grid in grids]
        if min(counts, default=1) < 1:
            raise BudgetError(f"{self._method.name} leaves at least 1 token of a picture")
        order = self._order(modality, call, patches)
        done = _Run(patches.layouts, side=patches.side, grids=grids, counts=counts, order=order)
        done.open_ended = self._by_content
        if done.idle:
            self._settle(done, [torch.arange(len(grid)) for grid in grids], order)
        return self._through(run, done)

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if self._method.shortens:
            return super()._enter(number, module, args, kwargs)
        run = self._running.value
        if run is not None and number == self._first:
            self._reach(run, hidden_of(args, kwargs))
            run.ran, self._running.value = True, None
        return None

    @torch.no_grad()
    def _reach(self, run: _Run, hidden: Tensor) -> None:
        blocks, checks = hidden.view(-1, run.side**2, hidden.shape[-1]), Checks()
        images = zip(run.grids, run.counts, run.order, strict=True)
        with collected(checks):
            choices = abreast([self._choose(blocks, *image, checks) for image in images])
            found = answered(choices, checks)
        checks.settle()
        kept = torch.split(torch.cat(found).cpu(), [len(one) for one in found])
        self._settle(run, kept, run.order)

    def _choose(
        self, blocks: Tensor, grid: Grid, count: int, order: Tensor, checks: Checks
    ) -> Asking[Tensor]:
        """[count] int64: the tokens of an image or clip that stay; fewer by a threshold."""
        if count == len(grid) and not self._by_content:
            return torch.arange(count, device=blocks.device)
        tokens = TokenPatches(blocks[order.to(blocks.device)][None], grid)
        name = self._method.name
        if self._by_content:
            found = yield from self._method.selecting(tokens, count)
            return indices(name, found[0], len(grid), count, checks, may_keep_fewer=True)
        found = self._method.select(tokens, count)
        return rows_of_indices(name, found, (1, count), len(grid), checks)[0]
