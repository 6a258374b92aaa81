"""Leaving out patches before a layer of a tower that takes them as one sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError
from vlmcompress.methods.contracts.answers import indices
from vlmcompress.methods.contracts.before_projector import PixelTokens
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.patches.encoder.qwen_patches import QwenPatches
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.hooks.arguments import hidden_of, with_hidden
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.per_thread import During
from vlmcompress.patches.hooks.unsupported import unreached
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Grid, Layout


@dataclass
class PackedRun:
    """One feature call."""

    layouts: Sequence[Layout]
    kept: Sequence[Tensor] = ()
    """Of each image or clip the tokens that stay, in raster order; once that is known."""
    blocks: Tensor | None = None
    """[U] bool: blocks of patches that stay, in the order of the tower; once that is known."""
    side: int = 1
    """Patches along a side of a block."""
    ran: bool = False
    """Whether a layer was given fewer patches."""
    _places: dict[torch.device, Tensor] = field(default_factory=dict)
    _lengths: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    _hosts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Borders of the whole sequence, and the same on the CPU."""

    @property
    def idle(self) -> bool:
        """Whether everything stays."""
        return self.blocks is not None and bool(self.blocks.all())

    @property
    def patches(self) -> Tensor:
        """[U * side**2] bool: the patches that stay."""
        assert self.blocks is not None
        return self.blocks.repeat_interleave(self.side**2)

    def settle(self, blocks: Tensor) -> None:
        """Note which blocks stay, [U] bool."""
        self.blocks, self._places, self._lengths = blocks, {}, {}

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
            borders = torch.unique_consecutive(counts[self._on_host(ends)])
            longest = int(borders.diff().max())
            self._lengths[id(ends)] = borders.to(ends), longest
        return self._lengths[id(ends)]

    def _on_host(self, ends: Tensor) -> Tensor:
        if id(ends) not in self._hosts:
            # The key is kept alive, so that its id stays its own.
            self._hosts[id(ends)] = ends, ends.cpu().long()
        return self._hosts[id(ends)][1]


Run = TypeVar("Run", bound=PackedRun)


class PackedTower(Generic[Run]):
    """A tower that takes the patches of all images as one sequence, a block of them a token.

    Those that are left keep their positions and attend to one another as far as they did. Behind
    the merger the places of the others are filled with zeros, which do not enter the decoder.
    """

    takes_chunks = False
    dropped_before: tuple[int, int] | None = None

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        self._model, self._family = parts.model, parts.family
        self._base, self._towers = parts.base, parts.towers
        self._method: Any = planner.pipeline.upstream
        self._running = During[Run]()
        self._first = 0
        """The layer before which patches leave."""

    def hook(self, attached: Attachments) -> None:
        for tower in self._towers:
            for number, (block, _) in enumerate(attention_layers(tower)):
                attached.before(block, functools.partial(self._enter, number))
        for merger in self._family.projectors(self._base):
            attached.change(merger, self._merged)

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        return self._family.layouts(self._model, modality, (), call)

    def _through(self, run: Callable[..., Any], done: Run) -> tuple[Any, Run]:
        """What a feature call gives while the hooks act on `done`, which they need not if idle."""
        with self._running.holding(None if done.idle else done):
            return run(), done

    def _order(self, modality: str, call: Mapping[str, Any], patches: QwenPatches) -> list[Tensor]:
        """Of each image or clip [N] int64: the number of each token's block in the tower."""
        total = sum(map(len, patches.layouts))
        # Numbers of blocks, brought into raster order as the features of blocks are.
        numbers = torch.arange(total, dtype=torch.float64).repeat_interleave(patches.side**2)
        pieces = self._family.encoder.to_tokens(self._base, modality, numbers[:, None], call)
        return [piece[:, 0].long() for piece in pieces]

    def _settle(self, run: Run, kept: Sequence[Tensor], order: Sequence[Tensor]) -> None:
        """Note what stays."""
        blocks = torch.zeros(sum(map(len, order)), dtype=torch.bool)
        for places, mine in zip(order, kept, strict=True):
            blocks[places[mine]] = True
        run.kept = kept
        run.settle(blocks)

    def put_back(
        self, done: Run, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        if not (done.idle or done.ran):
            raise unreached(self._method.name)
        survivors = [
            Survivors.everything(layout) if groups is None else Survivors.of(groups, layout)
            for layout, groups in zip(done.layouts, self._groups(done), strict=True)
        ]
        return replace(encoded, survivors=survivors)

    def _groups(self, done: Run) -> Iterable[Tensor | None]:
        """What `Survivors.of` takes, of each image or clip; None where all its tokens stay."""
        for layout, kept in zip(done.layouts, done.kept, strict=True):
            groups = torch.full((len(layout),), -1)
            groups[kept] = kept
            yield None if len(kept) == len(layout) else groups

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._running.value
        if run is None or number < self._first:
            return None
        if number == self._first:
            self._reach(run, hidden_of(args, kwargs))
        changed = self._shorter(run, kwargs)
        if number > self._first:
            return args, changed
        run.ran = True
        return with_hidden(args, changed, run.take(hidden_of(args, kwargs)))

    def _shorter(self, run: Run, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a layer is told of the patches, of those that stay alone."""
        changed = dict(kwargs)
        changed["cu_seqlens"], longest = run.lengths(kwargs["cu_seqlens"])
        if kwargs.get("max_seqlen") is not None:
            changed["max_seqlen"] = longest
        cos, sin = kwargs["position_embeddings"]
        changed["position_embeddings"] = run.take(cos), run.take(sin)
        return changed

    def _reach(self, run: Run, hidden: Tensor) -> None:
        """What enters the first layer that works less: [P, D]."""

    def _merged(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        run = self._running.value
        # DeepStack has mergers between the layers; those before a method acts see everything.
        if run is None or run.blocks is None:
            return None
        whole = output.new_zeros(len(run.blocks), *output.shape[1:])
        whole[run.blocks.nonzero()[:, 0].to(output.device)] = output
        return whole


class PatchDropping(PackedTower[PackedRun]):
    """Lets a `PixelSelector` say which blocks of patches the tower sees."""

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, PackedRun]:
        patches = QwenPatches.of(self._model, self._family, modality, call)
        pairs = zip(patches.rows, patches.grids, strict=True)
        checks = Checks()
        with collected(checks):
            found = [self._select(rows, grid, planner, checks) for rows, grid in pairs]
        checks.settle()
        kept = torch.split(torch.cat(found).cpu(), [len(one) for one in found])
        done = PackedRun(patches.layouts, side=patches.side)
        self._settle(done, kept, self._order(modality, call, patches))
        return self._through(run, done)

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
