"""Merging tokens between the layers of a tower that takes all images as one sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.methods.contracts.before_projector import EncoderMethod, Merge
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.patches.encoder.merge_state import (
    Merging,
    Seen,
    TowerView,
    check_proportional,
    scheduled,
)
from vlmcompress.patches.encoder.packed_tower import check_segments
from vlmcompress.patches.encoder.patch_dropping import PackedRun, PackedTower
from vlmcompress.patches.encoder.qwen_patches import QwenPatches
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.hooks.arguments import hidden_in, hidden_of, with_hidden_in
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.attended import Attended
from vlmcompress.patches.sequence.watched_attention import watch
from vlmcompress.patches.signals.tower_attention import AttentionCall, note_projections
from vlmcompress.tokens import Grid


class _Frames(Merging):
    """The frames of one image or clip."""

    def __init__(self, grid: Grid, order: Tensor, counts: dict[int, int]) -> None:
        """None is merged yet.

        Args:
            grid: of the image or clip.
            order: [N] int64: the number of each token's block in the tower.
            counts: layer -> tokens of a frame that leave it; fewer than before it.
        """
        super().__init__(grid.t, grid.h * grid.w, 0, order.device)
        self.counts = counts
        self.whole = order.view(grid.t, -1)
        """[t, N]: where each token of the beginning was."""
        self.places = self.whole
        """[t, n]: where each token is: at the block of the leader of its group."""

    def follow(self, patches: Tensor, merge: Merge, count: int) -> Tensor:
        """`merge`, and every group goes where its leader is: [t, n, m, D] -> [t, count, m, D]."""
        means, groups = self.merge(patches, merge, count)
        led = self.places.gather(1, merge.leader.to(self.places.device))
        self.places = led.new_zeros(len(led), count).scatter(1, groups.slot, led)
        return means


class _Seen(Seen):
    """Of all frames of a call."""

    @cached_property
    def received(self) -> Tensor:
        """[P] float32: the sum over the queries of the key's own window."""
        lengths = torch.tensor(self._call.lengths())
        return super().received * lengths.repeat_interleave(lengths).to(self._call.hidden.device)


@dataclass(frozen=True)
class _FramesView(TowerView):
    """Of the frames of one image or clip."""

    patches: int
    """m: of each token."""

    def received(self) -> Tensor:
        # The queries of other windows give nothing, and count.
        return super().received() / (self.hidden.shape[1] * self.patches)


@dataclass
class _Run(PackedRun):
    clips: Sequence[_Frames] = ()
    checks: Checks = field(default_factory=Checks)
    seen: AttentionCall | None = None
    """The last attention that a merge will want to know of."""
    row: Tensor | None = None
    """[U] int64: which block of the shortened sequence each block of the whole is; anything for
    those that merged into others."""
    bias: Tensor | None = None
    """[n * m] float32: logarithm of what each patch of the shortened sequence stands for."""
    at: int = 0
    """Keys of the running attention that were seen so far, as it goes segment by segment."""

    @property
    def idle(self) -> bool:
        return not any(clip.counts for clip in self.clips)

    def shorten(self, device: torch.device) -> Tensor:
        """Note where the tokens are now: the order [n] of those of all clips in the tower."""
        places = torch.cat([clip.places.flatten() for clip in self.clips])
        order = places.argsort()
        total = sum(map(len, self.layouts))
        self.row = places.new_zeros(total)
        self.row[places[order]] = torch.arange(len(order), device=places.device)
        alive = torch.zeros(total, dtype=torch.bool)
        alive[places.cpu()] = True
        self.settle(alive)
        sizes = torch.cat([clip.sizes.flatten() for clip in self.clips])[order]
        self.bias = sizes.log().repeat_interleave(self.side**2).to(device)
        return order


class PackedTowerMerging(PackedTower[_Run]):
    """Lets an `EncoderMethod` merge the tokens of each frame after some layers.

    All patches of a token merge, each with those at its place in the other tokens of the group, so
    that the merger behind the tower still finds whole tokens. A group goes on at the place of its
    leader: with its positions and in its window. Behind the mergers, of DeepStack too, every member
    is given the features that its group had there.
    """

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        super().__init__(parts, planner)
        self._method: EncoderMethod = cast(EncoderMethod, planner.pipeline.upstream)
        self._layers = [attention_layers(tower) for tower in parts.towers]
        self._depth = min(map(len, self._layers))
        check_segments(self._method.name, "merges", parts)
        check_proportional(self._method, parts.towers)
        for _, attention in (one for layers in self._layers for one in layers):
            if "config" not in vars(attention):
                raise UnsupportedModelError(
                    f"{self._method.name} merges between layers whose attention has a "
                    f"configuration, and {type(attention).__name__} has none"
                )

    def hook(self, attached: Attachments) -> None:
        super().hook(attached)
        for layers in self._layers:
            for number, (layer, attention) in enumerate(layers):
                attached.before(attention, functools.partial(self._look, number))
                attached.change(layer, functools.partial(self._leave, number))
                if self._method.proportional or self._family.encoder.watched:
                    watch(attached, attention, self._attend)
                note_projections(attached, attention, self._seen)

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        check_proportional(self._method, self._towers)
        patches = QwenPatches.of(self._model, self._family, modality, call)
        clips, device = [], next(self._towers[0].parameters()).device
        for grid, order in zip(patches.grids, self._order(modality, call, patches), strict=True):
            frame = Grid(1, grid.h, grid.w)
            keep = min(planner.upstream(frame, grid), len(frame))
            counts = scheduled(self._method, self._depth, frame, keep)
            clips.append(_Frames(grid, order.to(device), counts))
        done = _Run(patches.layouts, side=patches.side, clips=clips)
        return self._through(run, done)

    def _groups(self, done: _Run) -> Iterable[Tensor | None]:
        slots = done.checks.read([clip.slot for clip in done.clips])
        for clip, slot in zip(done.clips, slots, strict=True):
            groups = (slot + torch.arange(len(slot))[:, None] * clip.total).flatten()
            yield groups if clip.merged else None

    def _enter(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        run = self._running.value
        if run is None or run.blocks is None:
            return None
        return args, self._shorter(run, kwargs)

    def _look(self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        run = self._running.value
        if run is None:
            return
        run.at = 0
        if any(number in clip.counts for clip in run.clips):
            run.seen = AttentionCall(module, hidden_of(args, kwargs), kwargs)

    def _attend(self, attended: Attended) -> Tensor | None:
        """What is added to the logits of the keys of a segment: [1, 1, 1, n]."""
        run = self._running.value
        if run is None:
            return None
        if run.seen is not None and self._family.encoder.watched:
            run.seen.attended.append(attended)
        if run.bias is None or not self._method.proportional:
            return None
        start, run.at = run.at, run.at + attended.keys.shape[2]
        return run.bias[None, None, None, start : run.at].to(attended.keys)

    def _seen(self) -> AttentionCall | None:
        run = self._running.value
        return None if run is None else run.seen

    def _leave(self, number: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        run = self._running.value
        if run is None or run.seen is None:
            return None
        hidden = hidden_in(output)
        blocks = hidden.view(-1, run.side**2, hidden.shape[-1])
        seen = _Seen(run.seen, run.bias if self._method.proportional else None)
        pieces = [self._merged_frames(run, clip, number, blocks, seen) for clip in run.clips]
        run.seen, run.ran = None, True
        whole = torch.cat([piece.flatten(0, 1) for piece in pieces])
        hidden = whole[run.shorten(hidden.device).to(hidden.device)].flatten(0, 1)
        return with_hidden_in(output, hidden)

    def _merged_frames(
        self, run: _Run, clip: _Frames, number: int, blocks: Tensor, seen: Seen
    ) -> Tensor:
        """[t, n, m, D] of the tokens of a clip after a layer."""
        rows = clip.places if run.row is None else run.row[clip.places]
        rows = rows.to(blocks.device)
        patches = blocks[rows]
        if number not in clip.counts:
            return patches

        def tokens(values: Tensor) -> Tensor:
            return values.view(-1, run.side**2, values.shape[-1]).mean(1)[rows]

        name, count = self._method.name, clip.counts[number]
        means = patches.mean(2), clip.sizes
        view = _FramesView(number, self._depth, 0, *means, seen, tokens, patches.shape[2])
        with torch.no_grad(), collected(run.checks):
            merge = self._method.merge(view, count)
            merge = clip.checked(name, merge, count, run.checks)
        return clip.follow(patches, merge, count)

    def _merged(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        run = self._running.value
        if run is None or run.row is None:
            return None
        source = run.row.new_zeros(len(run.row))
        for clip in run.clips:
            source[clip.whole] = run.row[clip.places.gather(1, clip.slot)]
        return output[source.to(output.device)]
