"""The prefill: select or merge the visual tokens, then shorten everything the decoder is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlmcompress.budget.planner import Planner
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.before_projector import EncoderMethod, TowerDropper
from vlmcompress.ops.deferred_checks import Checks, collected
from vlmcompress.ops.gather import axes_first, axes_last, take_all
from vlmcompress.ops.questions import Asking, abreast, answered
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.decoder import prompt_rows
from vlmcompress.patches.decoder.continuation import lay_out
from vlmcompress.patches.decoder.prompt_bias import bias_of
from vlmcompress.patches.decoder.selection import Chosen, choose, some_of
from vlmcompress.patches.hooks.arguments import cache_of
from vlmcompress.patches.hooks.unsupported import two_dimensional
from vlmcompress.patches.sequence.cache_state import Slots
from vlmcompress.patches.sequence.call_trace import ImageTrace
from vlmcompress.patches.sequence.deepstack import added, follow_in_loop, looked_at
from vlmcompress.patches.sequence.host_chunk import HostChunk
from vlmcompress.patches.sequence.packing import pack, slot_of
from vlmcompress.patches.sequence.per_token import kept_of
from vlmcompress.patches.sequence.placeholders import Located, Pieces, Prompt, locate
from vlmcompress.patches.sequence.separators import Separators, close
from vlmcompress.patches.sequence.spans import Span
from vlmcompress.patches.sequence.stage_layout import StageLayout
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import ChunkIds, Encoded
from vlmcompress.tokens import Grid, Reduction, VisualTokens


class Prefill:
    """One prefill with images. `run` gives the decoder's new keyword arguments."""

    stages: StageLayout
    separators: list[Separators]
    """Per image: those that are kept, in columns."""

    def __init__(
        self,
        installed: Installed,
        chunk: HostChunk,
        encoded: Mapping[str, Encoded],
        kwargs: dict[str, Any],
        prompt: int | None,
    ) -> None:
        self.installed, self.encoded, self.kwargs = installed, encoded, kwargs
        self.embeds: Tensor = kwargs["inputs_embeds"]
        self.checks = Checks()
        self.batch, self.length = self.embeds.shape[:2]
        self.cache = cache_of(kwargs)
        self.past = int(self.cache.get_seq_length()) if self.cache is not None else 0
        self.ids = chunk.ids
        family = installed.family
        layouts = {modality: found.layouts for modality, found in encoded.items()}
        self.unmasked = chunk.unmasked
        self.valid = self._chunk_valid()
        tokens = family.placeholders(installed.model)
        images = locate(self.ids, tokens, layouts, family.continues, family.of_pieces)
        self.images = [image.under(self.unmasked[image.row]) for image in images]
        self.survivors = [prompt_rows.open_survivors(image, encoded) for image in self.images]
        """Per image: what a method before the projector left; None without such a method."""
        end = self.length if prompt is None else min(self.length, prompt - self.past)
        self.prompt_end = end
        self.planner = self._resolved_planner()
        self.plans = self.planner.plan(
            [image.open_layout for image in self.images],
            self._surviving_grids(),
        )
        decoder = self.planner.pipeline.decoder
        for image, plan in zip(self.images, self.plans, strict=True):
            if decoder is not None and plan.schedule:
                prompt_rows.check_grid(decoder, image, plan)

    def _surviving_grids(self) -> list[tuple[Grid, ...] | None]:
        return [None if one is None else one.grids for one in self.survivors]

    def _resolved_planner(self) -> Planner:
        """The planner whose budget is a share of the tokens, where it was a cost."""
        installed = self.installed
        solver, now = installed.solver, installed.now
        if solver is None:
            return installed.planner
        if now.solved is None:
            grids = self._surviving_grids()
            prompt = Prompt.of(self.unmasked[:, : self.prompt_end], self.images, grids)
            trace, device = installed.trace, self.embeds.device
            with trace.timed("calibration", device), now.aside():
                now.solved = solver.solve(prompt, lambda: trace.milliseconds()["encoder"])
        installed.trace.solved = now.solved
        return now.solved.planner

    def _chunk_valid(self) -> Tensor | None:
        """[B, L] bool of the chunk, None without padding."""
        mask = two_dimensional(self.kwargs.get("attention_mask"))
        if mask is None or bool(self.unmasked.all()):
            return None
        return mask[:, self.past :].bool()

    def run(self) -> dict[str, Any] | None:
        """Shorten the sequence; None when every token is kept and nothing has to change."""
        with collected(self.checks):
            return self._shortened()

    def _shortened(self) -> dict[str, Any] | None:
        kept, reductions = self._select()
        self._record(kept, reductions)
        idle = all(
            len(indices) == len(image.open) and not plan.schedule and reduction is None
            for image, plan, indices, reduction in zip(
                self.images, self.plans, kept, reductions, strict=True
            )
        )
        if idle:
            self.checks.settle()
            return None
        embeds = prompt_rows.place(self.kwargs, self.images, kept, reductions)
        index, keep, size = self._pack(kept)
        self._lay_out_stages(index, keep, size, kept)
        follow = self.kwargs, self.images, reductions, self.chunk, self.stages.placeholders
        changed = self._inputs(embeds)
        told = list(zip(self.images, kept, reductions, self.survivors, strict=True))
        self.stages.bias = bias_of(self.installed, self.stages, told, changed["position_ids"])
        changed |= added(*follow) | follow_in_loop(*follow)
        return kept_of(self.kwargs, self.chunk.index) | changed

    def _select(self) -> tuple[list[Tensor], list[Reduction | None]]:
        """Per image: raster indices [K] placed in the decoder, and the merge if there was one.

        Where a method keeps another number than was planned, the plan follows.
        """
        asking: dict[Pieces, Asking[Chosen]] = {}
        with self.installed.trace.timed("selection", self.embeds.device):
            for image, plan, left in zip(self.images, self.plans, self.survivors, strict=True):
                if image.pieces not in asking:  # beams repeat a prompt, and so its choices
                    asking[image.pieces] = self._choose(image, plan, left)
            found = answered(abreast(list(asking.values())), self.checks)
        done = dict(zip(asking, found, strict=True))
        chosen = [done[image.pieces] for image in self.images]
        for number, (plan, one) in enumerate(zip(self.plans, chosen, strict=True)):
            if one.counts != tuple(kept for _, kept in plan.parts):
                self.plans[number] = self.planner.pipeline.revised(plan, one.counts)
        return [one.kept for one in chosen], [one.merged for one in chosen]

    def _choose(
        self, image: Located, plan: ImagePlan, survivors: Survivors | None
    ) -> Asking[Chosen]:
        """The choice in raster indices of the image."""
        planner, device = self.planner, self.embeds.device
        method = planner.pipeline.projector
        alive = (image.open if survivors is None else survivors.alive).to(device)
        may_keep_fewer = method is not None and method.adaptive and planner.budget is None
        whole = plan.keep >= plan.given and not may_keep_fewer
        if method is None or whole or not len(alive):
            return Chosen(alive, tuple(kept for _, kept in plan.parts))
        prompt_rows.check_grid(method, image, plan)
        tokens = self._tokens(image)
        grids = image.open_layout.parts if survivors is None else survivors.grids
        method_order = self.installed.order == "method"
        found = yield from choose(
            method, plan, tokens, grids, may_keep_fewer, method_order, self.checks
        )
        merged = None if found.merged is None else found.merged.named(alive)
        return Chosen(alive[found.kept.to(device)], found.counts, merged)

    def _tokens(self, image: Located) -> VisualTokens:
        """What a method may look at: no token that is gone already, none that is masked."""
        chunk = ChunkIds(self.ids, self.unmasked, self.prompt_end)
        tokens = self.installed.signals.tokens(image, self.encoded, looked_at(self.kwargs), chunk)
        survivors = prompt_rows.survivors_of(image, self.encoded)
        left = torch.arange(len(image.layout))
        if survivors is not None:
            left = survivors.alive
            merges = isinstance(self.planner.pipeline.upstream, EncoderMethod)
            sizes = survivors.sizes.to(self.embeds.device) if merges else None
            if isinstance(self.planner.pipeline.upstream, TowerDropper):
                tokens = some_of(tokens, left)  # signals are of all tokens, too
            else:
                own = left.to(self.embeds.device)
                logits = None if tokens.question_logits is None else tokens.question_logits[own]
                tokens = replace(tokens, features=tokens.features[own], sizes=sizes)
                tokens = replace(tokens, question_logits=logits)
        if image.unmasked is None:
            return tokens
        return some_of(tokens, torch.isin(left, image.unmasked).nonzero()[:, 0])

    def _record(self, kept: list[Tensor], reductions: list[Reduction | None]) -> None:
        trace, layers = self.installed.trace, len(self.installed.layers)
        self.traces = [
            ImageTrace(
                image.prompt,
                image.layout,
                plan,
                layers,
                indices,
                reduction,
                survivors,
                separators={0: len(image.separators)},
                masked=len(image.layout) - len(image.open),
                notes=self.installed.planner.notes(image.open_layout, plan),
            )
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

    def _pack(self, kept: list[Tensor]) -> tuple[Slots, Tensor, int]:
        """Chunk columns of the kept slots, the kept columns [B, L], and the longest row."""
        device = self.embeds.device
        keep = torch.ones(self.batch, self.length, dtype=torch.bool, device=device)
        valid = None if self.valid is None else self.valid.to(device)
        if valid is not None:
            keep &= valid
        self.counts = self.unmasked.sum(1).tolist()
        if all(len(k) == len(i.open) for i, k in zip(self.images, kept, strict=True)):
            # Only decoder layers drop: leave what is masked where it is.
            self.separators = [image.separators.to(device) for image in self.images]
            columns = torch.arange(self.length, device=device).expand(self.batch, self.length)
            return Slots(columns, valid), torch.ones_like(keep), self.length
        pairs = zip(self.images, kept, strict=True)
        closings = [image.closing(keep, indices) for image, indices in pairs]
        self.separators = []
        for image, (closed, left) in zip(self.images, close(closings, self.checks), strict=True):
            self.counts[image.row] -= closed
            self.separators.append(left)
        prompt_rows.check_rows(self.counts, self.unmasked)
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
        texts = prompt_rows.questions(self.unmasked[:, : self.prompt_end], self.images, self.plans)
        stages.text = [slot[row, text.to(device)] for row, (text, _) in enumerate(texts)]
        last = torch.tensor([last for _, last in texts], device=device)
        # Only cuts look at it, and a prompt with cuts does not end with what may be dropped.
        stages.last = slot.gather(1, last[:, None])[:, 0].clamp_min(0)
        stages.counts = list(self.counts)
        stages.generated = self.length - self.prompt_end
        for image, indices, placed, trace in zip(
            self.images, kept, self.separators, self.traces, strict=True
        ):
            columns = image.columns.to(device)
            slots = slot[image.row, columns[indices.sort().values]]
            separators = placed.move(slot[image.row])
            trace.separators[0] = len(separators)
            first = int(image.columns[image.open[0]]) if len(image.open) else 0
            reach = texts[image.row][1] - first
            stages.spans.append(Span(image.row, slots, indices, separators, trace, reach))
        layers = {layer for plan in self.plans for layer in plan.schedule}
        stages.cuts = tuple(sorted(layers))
        stages.checks = self.checks  # one wait for all of them, when the layers are done
        self.stages = stages

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
