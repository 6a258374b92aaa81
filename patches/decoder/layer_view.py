"""What a decoder-stage method may look at, for one image before a cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.decoder.cut_context import CutContext, Of
from vlmcompress.patches.sequence.attention_masks import has_keys
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

    @property
    def _after(self) -> Tensor:
        """[1] the slot behind the image; one follows, for no prompt that is cut ends with one."""
        placeholders = torch.cat([self.span.slots, self.span.separators.at])
        return self._there(placeholders.amax(keepdim=True) + 1)

    def _there(self, slots: Tensor) -> Tensor:
        """Where the layer computes; the layout of the forward stays where the decoder begins."""
        return slots.to(self.context.hidden.device)

    def attention(
        self,
        rows: Literal["last", "text", "after"] = "last",
        keys: Literal["all", "visual"] = "all",
        *,
        rope: bool = True,
        of: Of = "this",
    ) -> Tensor:
        row, context = self.span.row, self.context
        assert context.stages.last is not None
        queries = {
            "last": context.stages.last[row : row + 1],
            "text": self.text,
            "after": self._after,
        }[rows]
        self._say_where(of)
        if keys == "visual":
            return context.rows_among(of, rope, row, queries, self.visual)
        self._look(of)
        return context.rows(of, rope, row, queries)

    def propagate(
        self,
        mass: Tensor,
        *,
        temperature: float = 1.0,
        steps: int = 1,
        of: Literal["this", "previous"] = "this",
    ) -> Tensor:
        self._say_where(of)
        self._look(of)
        row, context = self.span.row, self.context
        last = context.stages.last
        assert last is not None
        slots = torch.arange(context.hidden.shape[1], device=context.hidden.device)
        # Answers so far hand nothing on: with a cache, the prefill does not know them.
        known = slots <= self._there(last[row])
        return context.spread(of, row, mass.to(slots.device), known, temperature, steps)

    def _say_where(self, of: Of) -> None:
        """Tell the report where the layer that the method means has no attention."""
        context, meant = self.context, self.context.meant(of)
        if not has_keys(context.stages.kinds.names[meant]):
            self._note(
                f"before decoder layer {self.layer} it was ranked in layer {context.number(of)}, "
                f"the nearest with attention"
            )

    def _note(self, note: str) -> None:
        notes = self.span.trace.notes
        notes += [note] if note not in notes else []

    def _look(self, of: Of) -> None:
        """Tell the report where a window ends behind the image and no full layer comes before."""
        reach = self.context.reach(of)
        if reach is None or self.span.reach < reach.size:
            return
        self._note(
            f"before decoder layer {self.layer} it was ranked in layer {self.context.number(of)}, "
            f"which sees {reach.size} tokens back, and the image begins {self.span.reach} back: "
            "tokens further away count as 0, and no full layer comes before"
        )

    def keys(self, *, rope: bool = True, of: Of = "this") -> Tensor:
        return self.context.chunk_keys(of, rope)[self.span.row].detach().float()

    @property
    def hidden(self) -> Tensor:
        return self._states(self.context.hidden)

    @property
    def entered(self) -> Tensor:
        entered = self.context.stages.entered
        assert entered is not None  # the layers before cuts are hooked
        return self._there(self._states(entered))

    def _states(self, hidden: Tensor) -> Tensor:
        """[n, D] float32 of the row."""
        hidden = hidden[self.span.row].detach().float()
        # Some decoders keep several streams, which are one again only behind the last layer.
        return hidden if hidden.dim() == 2 else hidden.flatten(1, -2).mean(1)

    def activations(self, rows: Tensor, of: Literal["previous"] = "previous") -> Tensor:
        fired = self.context.stages.fired
        if fired is None or of != "previous":
            raise UnsupportedCallError(
                "activations are those of the layer that just ran, and only for a method whose "
                f"class says watches = True; got of={of!r}"
            )
        found = fired[self.span.row, rows.to(fired.device)]
        return self._there(found).detach().float()
