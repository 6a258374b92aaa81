"""What a decoder-stage method may look at, for one image before a cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.ops.score import attention_rows, propagate
from vlmcompress.patches.decoder.layer_attention import CutContext, Of
from vlmcompress.patches.sequence.spans import Span
from vlmcompress.tokens import Grid


@dataclass
class DecoderLayerView:
    """The `LayerView` of one image; see `vlmcompress.methods.contracts.method.LayerView`."""

    context: CutContext
    span: Span

    @property
    def layer(self) -> int:
        return self.context.layer

    @property
    def depth(self) -> int:
        return len(self.context.layers)

    @property
    def grid(self) -> Grid:
        return self.span.trace.layout.grid

    @property
    def parts(self) -> tuple[Grid, ...]:
        return self.span.trace.layout.parts

    @property
    def index(self) -> Tensor:
        return self._there(self.span.index)

    @property
    def visual(self) -> Tensor:
        return self._there(self.span.slots)

    @property
    def text(self) -> Tensor:
        return self._there(self.context.stages.text[self.span.row])

    def _there(self, slots: Tensor) -> Tensor:
        """Where the layer computes; the layout of the forward stays where the decoder begins."""
        return slots.to(self.context.hidden.device)

    def attention(
        self,
        rows: Literal["last", "text"] = "last",
        keys: Literal["all", "visual"] = "all",
        *,
        rope: bool = True,
        of: Of = "this",
    ) -> Tensor:
        row, context = self.span.row, self.context
        assert context.stages.last is not None
        queries = context.stages.last[row : row + 1] if rows == "last" else self.text
        q = context.heads(of, "q", (row, queries), rope)[0]
        scaling = context.scaling(of)
        if keys == "visual":
            return attention_rows(q, context.chunk_keys(of, rope)[row][:, self.visual], scaling)
        self._look(of)
        seen = context.seen(of, rope, row, queries)
        weights = attention_rows(q, context.all_keys(of, rope, row), scaling, seen)
        # Earlier turns take part in the softmax; only this chunk's columns are returned.
        return weights[..., -context.hidden.shape[1] :]

    def propagate(
        self, mass: Tensor, *, temperature: float = 1.0, of: Literal["this", "previous"] = "this"
    ) -> Tensor:
        self._look(of)
        row, context = self.span.row, self.context
        last = context.stages.last
        assert last is not None
        slots = torch.arange(context.hidden.shape[1], device=context.hidden.device)
        # Answers so far hand nothing on: with a cache, the prefill does not know them.
        mass = mass.to(slots.device) * (slots <= self._there(last[row]))

        def seen(start: int, stop: int) -> Tensor:
            return context.seen(of, True, row, slots[start:stop])

        found = propagate(
            context.chunk_queries(of)[row],
            context.all_keys(of, True, row),
            context.scaling(of),
            mass,
            seen,
            temperature=temperature,
        )
        return found[..., -len(slots) :]

    def _look(self, of: Of) -> None:
        """Tell the report where a window ends behind the image and no full layer comes before."""
        reach, trace = self.context.reach(of), self.span.trace
        if reach is None or self.span.reach < reach.size:
            return
        note = (
            f"before decoder layer {self.layer} it was ranked in layer {self.context.number(of)}, "
            f"which sees {reach.size} tokens back, and the image begins {self.span.reach} back: "
            "tokens further away count as 0, and no full layer comes before"
        )
        trace.notes += [note] if note not in trace.notes else []

    def keys(self, *, rope: bool = True, of: Of = "this") -> Tensor:
        return self.context.chunk_keys(of, rope)[self.span.row].detach().float()

    @property
    def hidden(self) -> Tensor:
        return self.context.hidden[self.span.row].detach().float()

    def activations(self, rows: Tensor, of: Literal["previous"] = "previous") -> Tensor:
        fired = self.context.stages.fired
        if fired is None or of != "previous":
            raise UnsupportedCallError(
                "activations are those of the layer that just ran, and only for a method whose "
                f"class says watches = True; got of={of!r}"
            )
        found = fired[self.span.row, rows.to(fired.device)]
        return self._there(found).detach().float()
