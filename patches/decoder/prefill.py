"""The prefill: select or merge the visual tokens, then shorten everything the decoder is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.composition.pipeline import ImagePlan
from vlmcompress.methods.contracts.before_projector import EncoderMethod
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.gather import axes_first, axes_last, take_all
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.decoder.continuation import lay_out
from vlmcompress.patches.decoder.selection import Chosen, choose
from vlmcompress.patches.hooks.arguments import cache_of
from vlmcompress.patches.hooks.unsupported import two_dimensional
from vlmcompress.patches.sequence.cache_state import Slots
from vlmcompress.patches.sequence.call_trace import ImageTrace
from vlmcompress.patches.sequence.deepstack import follow, follow_in_loop, looked_at, merge
from vlmcompress.patches.sequence.packing import pack, slot_of
from vlmcompress.patches.sequence.per_token import DEEPSTACK, kept_of
from vlmcompress.patches.sequence.placeholders import (
    Located,
    Pieces,
    Prompt,
    Separators,
    close,
    locate,
)
from vlmcompress.patches.sequence.spans import Span
from vlmcompress.patches.sequence.stage_layout import StageLayout
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import ChunkIds, Encoded
from vlmcompress.tokens import Grid, Reduction


class Prefill:
    """One prefill with images. `run` gives the decoder's new keyword arguments."""

    stages: StageLayout
    separators: list[Separators]
    """Per image: those that are kept, in columns."""

    def __init__(
        self,
        installed: Installed,
        call: Mapping[str, Any],
        encoded: Mapping[str, Encoded],
        kwargs: dict[str, Any],
        prompt: int | None,
    ) -> None:
        self.installed, self.encoded, self.kwargs = installed, encoded, kwargs
        self.embeds: Tensor = kwargs["inputs_embeds"]
        self.batch, self.length = self.embeds.shape[:2]
        self.cache = cache_of(kwargs)
        self.past = int(self.cache.get_seq_length()) if self.cache is not None else 0
        ids = call.get("input_ids")
        if ids is None:
            raise UnsupportedCallError(
                "a compressed model needs input_ids beside the images, not inputs_embeds"
            )
        self.ids: Tensor = ids
        family = installed.family
        layouts = {modality: found.layouts for modality, found in encoded.items()}
        self.images = locate(ids, family.placeholders(installed.model), layouts, family.continues)
        self.survivors = [self._survivors_of(image) for image in self.images]
        """Per image: what a method before the projector left; None without such a method."""
        end = self.length if prompt is None else min(self.length, prompt - self.past)
        self.prompt_end = end
        self.valid = self._chunk_valid()
        self.planner = self._resolved_planner()
        self.plans = self.planner(
            [image.layout for image in self.images],
            self._surviving_grids(),
        )

    def _survivors_of(self, image: Located) -> Survivors | None:
        pieces = []
        for modality, number in image.pieces:
            found = self.encoded[modality].survivors
            if found is None:
                return None
            pieces.append(found[number])
        return pieces[0] if len(pieces) == 1 else Survivors.join(pieces)

    def _surviving_grids(self) -> list[tuple[Grid, ...] | None]:
        return [None if one is None else one.grids for one in self.survivors]

    def _resolved_planner(self) -> Planner:
        """The planner whose budget is a share of the tokens, where it was a cost."""
        installed = self.installed
        solver, now = installed.solver, installed.now
        if solver is None:
            return installed.planner
        if now.solved is None:
            prompt = Prompt.of(self.ids, self.valid, self.images, self._surviving_grids())
            trace, device = installed.trace, self.embeds.device
            with trace.timed("calibration", device), now.aside():
                now.solved = solver.solve(prompt, lambda: trace.milliseconds()["encoder"])
        installed.trace.solved = now.solved
        return now.solved.planner

    def _chunk_valid(self) -> Tensor | None:
        """[B, L] bool of the chunk, None without padding."""
        mask = two_dimensional(self.kwargs.get("attention_mask"))
        if mask is None:
            return None
        valid = mask[:, self.past :].bool()
        return None if bool(valid.all()) else valid

    def run(self) -> dict[str, Any] | None:
        """Shorten the sequence; None when every token is kept and nothing has to change."""
        kept, reductions = self._select()
        self._record(kept, reductions)
        idle = all(
            len(indices) == len(image.layout) and not plan.schedule and reduction is None
            for image, plan, indices, reduction in zip(
                self.images, self.plans, kept, reductions, strict=True
            )
        )
        if idle:
            return None
        embeds = self._place(kept, reductions)
        index, keep, size = self._pack(kept)
        self._lay_out_stages(index, keep, size, kept)
        changed = self._inputs(embeds) | self._deepstack(reductions)
        changed |= follow_in_loop(self.kwargs, self.images, reductions, self.chunk)
        return kept_of(self.kwargs, self.chunk.index) | changed

    def _select(self) -> tuple[list[Tensor], list[Reduction | None]]:
        """Per image: raster indices [K] placed in the decoder, and the merge if there was one.

        Where a method keeps another number than was planned, the plan follows.
        """
        done: dict[Pieces, Chosen] = {}
        checks = Checks()
        with self.installed.trace.timed("selection", self.embeds.device):
            for number, (image, plan) in enumerate(zip(self.images, self.plans, strict=True)):
                if image.pieces not in done:  # beams repeat a prompt, and so its choices
                    done[image.pieces] = self._choose(image, plan, self.survivors[number], checks)
                counts = done[image.pieces].counts
                if counts != tuple(kept for _, kept in plan.parts):
                    self.plans[number] = self.planner.pipeline.revised(plan, counts)
            checks.settle()
        chosen = [done[image.pieces] for image in self.images]
        return [one.kept for one in chosen], [one.merged for one in chosen]

    def _choose(
        self, image: Located, plan: ImagePlan, survivors: Survivors | None, checks: Checks
    ) -> Chosen:
        """The choice in raster indices of the image."""
        planner, device = self.planner, self.embeds.device
        method = planner.pipeline.projector
        alive = torch.arange(len(image.layout)) if survivors is None else survivors.alive
        alive = alive.to(device)
        may_keep_fewer = method is not None and method.adaptive and planner.budget is None
        if method is None or (plan.keep >= plan.given and not may_keep_fewer):
            return Chosen(alive, tuple(kept for _, kept in plan.parts))
        chunk = ChunkIds(self.ids, self.valid, self.prompt_end)
        tokens = self.installed.signals.tokens(image, self.encoded, looked_at(self.kwargs), chunk)
        grids = image.layout.parts
        if survivors is not None:
            merges = isinstance(planner.pipeline.upstream, EncoderMethod)
            sizes = survivors.sizes.to(device) if merges else None
            tokens = replace(tokens, features=tokens.features[alive], sizes=sizes)
            grids = survivors.grids
        method_order = self.installed.order == "method"
        found = choose(method, plan, tokens, grids, may_keep_fewer, method_order, checks)
        kept, merged = alive[found.kept.to(device)], found.merged
        if merged is not None:
            merged = replace(merged, members=alive[merged.members.to(device)])
        return Chosen(kept, found.counts, merged)

    def _record(self, kept: list[Tensor], reductions: list[Reduction | None]) -> None:
        trace, layers = self.installed.trace, len(self.installed.layers)
        self.traces = [
            ImageTrace(image.row, image.layout, plan, layers, indices, reduction, survivors)
            for image, plan, indices, reduction, survivors in zip(
                self.images, self.plans, kept, reductions, self.survivors, strict=True
            )
        ]
        if trace.solved is not None:
            trace.solved.images = self.traces
        if not trace.prefilled:
            seen: set[Pieces] = set()
            for image, record in zip(self.images, self.traces, strict=True):
                if image.pieces not in seen:  # report a prompt once, not once per beam
                    trace.images.append(record)
                seen.add(image.pieces)

    def _place(self, kept: list[Tensor], reductions: list[Reduction | None]) -> Tensor:
        """Embeddings with merged features written at the place of each group."""
        if all(reduction is None for reduction in reductions):
            return self.embeds
        embeds = self.embeds.clone()
        for image, indices, reduction in zip(self.images, kept, reductions, strict=True):
            if reduction is not None:
                columns = image.columns.to(embeds.device)[indices]
                embeds[image.row, columns] = reduction.features.to(embeds)
        return embeds

    def _pack(self, kept: list[Tensor]) -> tuple[Slots, Tensor, int]:
        """Chunk columns of the kept slots, the kept columns [B, L], and the longest row."""
        device = self.embeds.device
        keep = torch.ones(self.batch, self.length, dtype=torch.bool, device=device)
        if self.valid is not None:
            keep &= self.valid.to(device)
        self.counts = keep.sum(1).tolist() if self.valid is not None else [self.length] * self.batch
        if all(len(k) == len(i.layout) for i, k in zip(self.images, kept, strict=True)):
            # Only decoder layers drop: leave padding where it is.
            self.separators = [image.separators.to(device) for image in self.images]
            columns = torch.arange(self.length, device=device).expand(self.batch, self.length)
            return Slots(columns, self.valid), torch.ones_like(keep), self.length
        self.separators = []
        for image, indices in zip(self.images, kept, strict=True):
            columns, own = image.columns.to(device), image.separators.to(device)
            closed, separators = close(keep[image.row], columns, indices, indices, own)
            self.counts[image.row] -= closed
            self.separators.append(separators)
        size = max(self.counts)
        index, valid = pack(keep, size, ragged=min(self.counts) < size)
        if self.installed.order == "method":
            slot = slot_of(keep, size)
            for image, indices in zip(self.images, kept, strict=True):
                columns = image.columns.to(device)
                index[image.row, slot[image.row, columns[indices.sort().values]]] = columns[indices]
        return Slots(index, valid), keep, size

    def _lay_out_stages(self, chunk: Slots, keep: Tensor, size: int, kept: list[Tensor]) -> None:
        device = self.embeds.device
        self.chunk = chunk
        stages = lay_out(
            self.installed, self.kwargs, self.past, Slots(chunk.index + self.past, chunk.valid)
        )
        slot = slot_of(keep, size)
        ends = self._text_starts()
        last = []
        valid = torch.ones_like(keep) if self.valid is None else self.valid.to(device)
        host = valid[:, : self.prompt_end].cpu()
        for row in range(self.batch):
            columns = host[row].nonzero()[:, 0]
            last.append(int(columns[-1]))
            if last[-1] == ends[row]:
                raise UnsupportedCallError(
                    f"prompt {row} ends with an image: put the question after it"
                )
            stages.text.append(slot[row, columns[columns > ends[row]].to(device)])
        stages.last = slot.gather(1, torch.tensor(last, device=device)[:, None])[:, 0]
        stages.counts = list(self.counts)
        stages.generated = self.length - self.prompt_end
        for image, indices, placed, trace in zip(
            self.images, kept, self.separators, self.traces, strict=True
        ):
            columns = image.columns.to(device)
            slots = slot[image.row, columns[indices.sort().values]]
            separators = placed.move(slot[image.row])
            trace.separators[0] = len(separators)
            stages.spans.append(Span(image.row, slots, indices, separators, trace))
        layers = {layer for plan in self.plans for layer in plan.schedule}
        stages.cuts = tuple(sorted(layers))
        self.stages = stages

    def _text_starts(self) -> list[int]:
        """Per row the column of its last placeholder, -1 without any."""
        ends = [-1] * self.batch
        for image in self.images:
            ends[image.row] = max(ends[image.row], int(image.placeholders[-1]))
        return ends

    def _inputs(self, embeds: Tensor) -> dict[str, Any]:
        """The decoder's arguments for the shortened sequence."""
        stages, chunk = self.stages, self.chunk
        positions = self.kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(self.length, device=embeds.device)[None] + self.past
        embeds, positions = take_all([embeds, axes_last(positions)], chunk.index)
        renumber = self.installed.positions == "renumber"
        positions = stages.renumbered(0) if renumber else axes_first(positions)
        mask = stages.first_mask()
        if mask is None and self.cache is None:
            # Without a cache, gaps in the positions would be read as packed sequences.
            width = chunk.index.shape[1]
            mask = torch.ones(self.batch, width, dtype=torch.bool, device=embeds.device)
        return {
            "inputs_embeds": embeds,
            "position_ids": positions,
            "attention_mask": mask,
        }

    def _deepstack(self, reductions: list[Reduction | None]) -> dict[str, Any]:
        """Features to be added in later layers, for the tokens that are kept."""
        mask, features = (self.kwargs.get(name) for name in DEEPSTACK)
        if mask is None or features is None:
            return {}
        merged = merge(mask, features, self.images, reductions)
        mask, features = follow(mask, merged, self.chunk)
        return dict(zip(DEEPSTACK, (mask, features), strict=True))
