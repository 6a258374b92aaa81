"""The prefill: select or merge the visual tokens, then shorten everything the decoder is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.base import ProjectorMethod, Reducer, Selector
from vlmcompress.methods.pipeline import ImagePlan
from vlmcompress.patches.deepstack import follow, merge
from vlmcompress.patches.flow import Flow, Span
from vlmcompress.patches.guard import two_dimensional
from vlmcompress.patches.layout import pack, slot_of, take, take_positions
from vlmcompress.patches.signals import Encoded, part_of
from vlmcompress.patches.spans import Located, Pieces, Separators, close, locate
from vlmcompress.patches.state import Slots
from vlmcompress.patches.trace import ImageTrace
from vlmcompress.tokens import Reduction, VisualTokens

if TYPE_CHECKING:
    from vlmcompress.patches.engine import Engine


class Reducing:
    """One prefill with images. `run` gives the decoder's new keyword arguments."""

    flow: Flow
    separators: list[Separators]
    """Per image: those that are left, in columns."""

    def __init__(
        self,
        engine: Engine,
        call: Mapping[str, Any],
        encoded: Mapping[str, Encoded],
        kwargs: dict[str, Any],
        prompt: int | None,
    ) -> None:
        self.engine, self.encoded, self.kwargs = engine, encoded, kwargs
        self.embeds: Tensor = kwargs["inputs_embeds"]
        self.batch, self.length = self.embeds.shape[:2]
        self.cache = kwargs.get("past_key_values")
        self.past = int(self.cache.get_seq_length()) if self.cache is not None else 0
        ids = call.get("input_ids")
        if ids is None:
            raise UnsupportedCallError(
                "a compressed model needs input_ids beside the images, not inputs_embeds"
            )
        self.ids: Tensor = ids
        family = engine.family
        layouts = {modality: found.layouts for modality, found in encoded.items()}
        self.images = locate(ids, family.placeholders(engine.model), layouts, family.continues)
        self.plans = engine.planner([image.layout for image in self.images])
        end = self.length if prompt is None else min(self.length, prompt - self.past)
        self.prompt_end = end
        self.valid = self._chunk_valid()

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
            plan.keep >= len(image.layout) and not plan.schedule and reduction is None
            for image, plan, reduction in zip(self.images, self.plans, reductions, strict=True)
        )
        if idle:
            return None
        embeds = self._place(kept, reductions)
        index, keep, size = self._pack(kept)
        self._build_flow(index, keep, size, kept)
        return self._inputs(embeds) | self._deepstack(reductions)

    def _select(self) -> tuple[list[Tensor], list[Reduction | None]]:
        """Per image: raster indices [K] placed in the decoder, and the merge if there was one."""
        method = self.engine.planner.pipeline.projector
        done: dict[Pieces, tuple[Tensor, Reduction | None]] = {}
        with self.engine.trace.timed("selection", self.embeds.device):
            for image, plan in zip(self.images, self.plans, strict=True):
                if image.pieces not in done:  # beams repeat a prompt, and so its choices
                    indices, reduction = self._choose(method, image, plan)
                    done[image.pieces] = indices.to(self.embeds.device), reduction
        chosen = [done[image.pieces] for image in self.images]
        return [kept for kept, _ in chosen], [reduction for _, reduction in chosen]

    def _choose(
        self, method: ProjectorMethod | None, image: Located, plan: ImagePlan
    ) -> tuple[Tensor, Reduction | None]:
        if method is None or plan.keep >= len(image.layout):
            return torch.arange(len(image.layout)), None
        whole = self.engine.signals.tokens(image, self)
        starts = [0, *accumulate(len(grid) for grid, _ in plan.parts)][:-1]
        chosen, reductions = [], []
        for part, ((grid, keep), start) in enumerate(zip(plan.parts, starts, strict=True)):
            tokens = part_of(whole, grid, start, part)
            if isinstance(method, Reducer):
                reductions.append(_reduce(method, tokens, keep))
            else:
                assert isinstance(method, Selector)
                pick = method.pick if self.engine.order == "method" else method.select
                chosen.append(_pick(pick, tokens, keep) + start)
        if reductions:
            joined = Reduction.join(reductions, starts)
            return joined.anchors, joined
        return torch.cat(chosen), None

    def _record(self, kept: list[Tensor], reductions: list[Reduction | None]) -> None:
        trace, layers = self.engine.trace, len(self.engine.layers)
        self.traces = [
            ImageTrace(image.row, image.layout, plan, layers, indices, reduction)
            for image, plan, indices, reduction in zip(
                self.images, self.plans, kept, reductions, strict=True
            )
        ]
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
            closed, left = close(keep[image.row], columns, indices, indices, own)
            self.counts[image.row] -= closed
            self.separators.append(left)
        size = max(self.counts)
        index, valid = pack(keep, size, ragged=min(self.counts) < size)
        if self.engine.order == "method":
            slot = slot_of(keep, size)
            for image, indices in zip(self.images, kept, strict=True):
                columns = image.columns.to(device)
                index[image.row, slot[image.row, columns[indices.sort().values]]] = columns[indices]
        return Slots(index, valid), keep, size

    def _build_flow(self, chunk: Slots, keep: Tensor, size: int, kept: list[Tensor]) -> None:
        device = self.embeds.device
        self.chunk = chunk
        flow = self.engine.new_flow(
            self.kwargs, self.past, Slots(chunk.index + self.past, chunk.valid)
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
            flow.text.append(slot[row, columns[columns > ends[row]].to(device)])
        flow.last = slot.gather(1, torch.tensor(last, device=device)[:, None])[:, 0]
        flow.counts = list(self.counts)
        flow.generated = self.length - self.prompt_end
        for image, indices, left, trace in zip(
            self.images, kept, self.separators, self.traces, strict=True
        ):
            columns = image.columns.to(device)
            places = columns[indices.sort().values]
            separators = left.move(slot[image.row])
            trace.separators[0] = len(separators)
            flow.spans.append(Span(image.row, slot[image.row, places], indices, separators, trace))
        layers = {layer for plan in self.plans for layer in plan.schedule}
        flow.cuts = tuple(sorted(layers))
        self.flow = flow

    def _text_starts(self) -> list[int]:
        """Per row the column of its last placeholder, -1 without any."""
        ends = [-1] * self.batch
        for image in self.images:
            ends[image.row] = max(ends[image.row], int(image.placeholders[-1]))
        return ends

    def _inputs(self, embeds: Tensor) -> dict[str, Any]:
        """The decoder's arguments for the shortened sequence."""
        flow, chunk = self.flow, self.chunk
        positions = self.kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(self.length, device=embeds.device)[None] + self.past
        positions = take_positions(positions, chunk.index)
        if self.engine.positions == "renumber":
            positions = flow.renumbered(0)
        mask = flow.first_mask()
        if mask is None and self.cache is None:
            # Without a cache, gaps in the positions would be read as packed sequences.
            width = chunk.index.shape[1]
            mask = torch.ones(self.batch, width, dtype=torch.bool, device=embeds.device)
        return {
            "inputs_embeds": take(embeds, chunk.index),
            "position_ids": positions,
            "attention_mask": mask,
        }

    def _deepstack(self, reductions: list[Reduction | None]) -> dict[str, Any]:
        """Features to be added in later layers, for the tokens that are left."""
        mask, features = (
            self.kwargs.get(name) for name in ("visual_pos_masks", "deepstack_visual_embeds")
        )
        if mask is None or features is None:
            return {}
        merged = merge(mask, features, self.images, reductions)
        mask, features = follow(mask, merged, self.chunk)
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": features}


def _pick(pick: Callable[[VisualTokens, int], Tensor], tokens: VisualTokens, count: int) -> Tensor:
    if 0 < count < len(tokens.grid):
        return pick(tokens, count)
    return torch.arange(count, device=tokens.features.device)


def _reduce(method: Reducer, tokens: VisualTokens, count: int) -> Reduction:
    if 0 < count < len(tokens.grid):
        return method.reduce(tokens, count)
    return Reduction.identity(tokens.features[:count])
