"""Leaving out patches before the first layer of a tower that takes them as one sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError, UnsupportedCallError
from vlmcompress.methods.contracts.answers import indices
from vlmcompress.methods.contracts.before_projector import PixelSelector, PixelTokens
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.patches.encoder.qwen_patches import QwenPatches
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.per_thread import PerThread
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Grid, Layout


@dataclass
class _Run:
    """One feature call."""

    layouts: Sequence[Layout]
    kept: Sequence[Tensor]
    """Of each image or clip the tokens that stay, in raster order."""
    blocks: Tensor
    """[U] bool: blocks of patches that stay, in the order of the tower."""
    patches: Tensor
    """[U * side**2] bool: their patches."""
    ran: bool = False
    _places: dict[torch.device, Tensor] = field(default_factory=dict)
    _lengths: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether everything stays."""
        return bool(self.blocks.all())

    def take(self, values: Tensor) -> Tensor:
        """Those of values for each patch [P, ...] that stay."""
        device = values.device
        if device not in self._places:
            self._places[device] = self.patches.nonzero()[:, 0].to(device)
        return values[self._places[device]]

    def lengths(self, ends: Tensor) -> tuple[Tensor, int]:
        """Borders of segments of the sequence, without what is left out and empty segments.

        And the longest of them. Worked out once, not in every layer.
        """
        if id(ends) not in self._lengths:
            counts = torch.cat([torch.zeros(1, dtype=torch.long), self.patches.cumsum(0)])
            borders = torch.unique_consecutive(counts[ends.cpu().long()])
            longest = int(borders.diff().max())
            # The key is kept alive, so that its id stays its own.
            self._lengths[id(ends)] = ends, borders.to(ends), longest
        return self._lengths[id(ends)][1:]


class PatchDropping:
    """Lets a `PixelSelector` say which blocks of patches the tower sees.

    They keep their positions and attend to one another as far as they did. Behind the merger the
    places of the others are filled with zeros, which do not enter the decoder.
    """

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        self._model, self._family = parts.model, parts.family
        self._base, self._towers = parts.base, parts.towers
        self._method = cast(PixelSelector, planner.pipeline.upstream)
        self._thread = PerThread()

    def hook(self, attached: Attachments) -> None:
        for tower in self._towers:
            for number, (block, _) in enumerate(attention_layers(tower)):
                attached.before(block, functools.partial(self._enter, number))
        for merger in self._family.projectors(self._base):
            attached.change(merger, self._merged)

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        return self._family.layouts(self._model, modality, (), call)

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        patches = QwenPatches.of(self._model, self._family, modality, call)
        pairs = zip(patches.rows, patches.grids, strict=True)
        checks = Checks()
        with collected(checks):
            found = [self._select(rows, grid, planner, checks) for rows, grid in pairs]
        checks.settle()
        kept = torch.split(torch.cat(found).cpu(), [len(one) for one in found])
        blocks = self._in_tower(modality, call, patches, kept)
        per_block = patches.side**2
        done = _Run(patches.layouts, kept, blocks, blocks.repeat_interleave(per_block))
        self._thread.run = None if done.idle else done
        try:
            return run(), done
        finally:
            self._thread.run = None

    @torch.no_grad()
    def _select(self, rows: Tensor, grid: Grid, planner: Planner, checks: Checks) -> Tensor:
        """[K] int64: the tokens of an image or clip that stay."""
        name, exact = self._method.name, planner.budget is not None
        count = planner.upstream(grid, grid)
        if count < 1:
            raise BudgetError(f"{name} leaves at least 1 token of a picture ({grid})")
        if exact and count >= len(grid):
            return torch.arange(len(grid), device=rows.device)
        tokens = PixelTokens(rows.reshape(len(grid), -1).float(), grid)
        found = self._method.select(tokens, count, exact)
        return indices(name, found, len(grid), count, checks, may_keep_fewer=not exact)

    def _in_tower(
        self, modality: str, call: Mapping[str, Any], patches: QwenPatches, kept: Sequence[Tensor]
    ) -> Tensor:
        """[U] bool: the blocks that stay, as the tower orders them."""
        total = sum(map(len, patches.layouts))
        # Numbers of blocks, brought into raster order as the features of blocks are.
        numbers = torch.arange(total, dtype=torch.float64).repeat_interleave(patches.side**2)
        pieces = self._family.encoder.to_tokens(self._base, modality, numbers[:, None], call)
        blocks = torch.zeros(total, dtype=torch.bool)
        for piece, mine in zip(pieces, kept, strict=True):
            blocks[piece[mine, 0].long()] = True
        return blocks

    def put_back(
        self, done: _Run, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        if not (done.idle or done.ran):
            raise UnsupportedCallError(
                f"{self._method.name} could not reach into the vision tower: call compress() "
                "before torch.compile()"
            )
        survivors = []
        for layout, kept in zip(done.layouts, done.kept, strict=True):
            groups = torch.full((len(layout),), -1)
            groups[kept] = kept
            whole = len(kept) == len(layout)
            survivors.append(
                Survivors.everything(layout) if whole else Survivors.of(groups, layout)
            )
        return replace(encoded, survivors=survivors)

    def _run(self) -> _Run | None:
        run: _Run | None = getattr(self._thread, "run", None)
        return run

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._run()
        if run is None:
            return None
        changed = dict(kwargs)
        changed["cu_seqlens"], longest = run.lengths(kwargs["cu_seqlens"])
        if kwargs.get("max_seqlen") is not None:
            changed["max_seqlen"] = longest
        cos, sin = kwargs["position_embeddings"]
        changed["position_embeddings"] = run.take(cos), run.take(sin)
        if number:
            return args, changed
        run.ran = True
        if args:
            return (run.take(args[0]), *args[1:]), changed
        return args, {**changed, "hidden_states": run.take(kwargs["hidden_states"])}

    def _merged(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        run = self._run()
        if run is None:
            return None
        whole = output.new_zeros(len(run.blocks), *output.shape[1:])
        whole[run.blocks.nonzero()[:, 0].to(output.device)] = output
        return whole
