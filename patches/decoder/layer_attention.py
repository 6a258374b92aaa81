"""Attention rows for decoder-stage methods, computed with a layer's own weights.

Only the rows that are asked for are computed, so SDPA and FlashAttention stay on in the model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from vlmcompress.errors import UnsupportedCallError, VLMCompressError
from vlmcompress.methods.contracts.method import DecoderMethod
from vlmcompress.ops.score import attention_rows, propagate
from vlmcompress.patches.sequence.attention_masks import VisibleKeys, inside
from vlmcompress.patches.sequence.spans import Span
from vlmcompress.patches.sequence.stage_layout import StageLayout
from vlmcompress.tokens import Grid

Of = Literal["this", "next", "previous"]


@dataclass
class CutContext:
    """All that is known before `layer`, where tokens are about to be dropped."""

    layer: int
    layers: nn.ModuleList
    stages: StageLayout
    hidden: Tensor
    """[B, Q, D]: input of `layer`."""
    _heads: dict[tuple[str, Of, bool], Tensor] = field(default_factory=dict)

    def source(self, of: Of) -> tuple[Any, Tensor]:
        """The layer whose weights are used and the hidden states it is applied to."""
        number = self.number(of)
        ran = number < self.layer
        return self.layers[number], self.stages.earlier.inputs[number][0] if ran else self.hidden

    def heads(self, of: Of, name: str, rows: tuple[int, Tensor] | None, rope: bool) -> Tensor:
        """Queries or keys [B, heads, R, hd] of all chunk tokens, or of some in one row."""
        layer, hidden = self.source(of)
        cos, sin = self._embeddings(of)
        if rows is not None:
            row, slots = rows
            hidden = hidden[row : row + 1, slots]
            cos, sin = (
                x.expand(len(self.hidden), -1, -1)[row : row + 1, slots] for x in (cos, sin)
            )
        attention = layer.self_attn
        flat = getattr(attention, f"{name}_proj")(layer.input_layernorm(hidden))
        heads: Tensor = flat.view(*flat.shape[:2], -1, attention.head_dim)
        norm = getattr(attention, f"{name}_norm", None)
        heads = (heads if norm is None else norm(heads)).transpose(1, 2)
        if not rope:
            return heads
        # The family's own rotary function, found where its attention class was written.
        rotate: Any = sys.modules[type(attention).__module__]
        cos, sin = cos.to(heads.device), sin.to(heads.device)
        rotated: Tensor = rotate.apply_rotary_pos_emb(heads, heads, cos, sin)[0]
        return rotated

    def chunk_keys(self, of: Of, rope: bool) -> Tensor:
        """[B, Hkv, Q, hd]: keys of the chunk's tokens at the current stage."""
        if ("k", of, rope) not in self._heads:
            cached = self._cached(of)
            number = self.number(of)
            ran = number < self.layer and not any(number < c < self.layer for c in self.stages.cuts)
            if ran and rope and cached is not None:
                # That layer has run on just these tokens, so its cache ends with their keys.
                self._heads["k", of, rope] = cached[:, :, -self.hidden.shape[1] :]
            else:
                self._heads["k", of, rope] = self.heads(of, "k", None, rope)
        return self._heads["k", of, rope]

    def chunk_queries(self, of: Of) -> Tensor:
        """[B, H, Q, hd]: rotated queries of the chunk's tokens at the current stage."""
        if ("q", of, True) not in self._heads:
            self._heads["q", of, True] = self.heads(of, "q", None, True)
        return self._heads["q", of, True]

    def past_keys(self, of: Of, rope: bool) -> tuple[Tensor, VisibleKeys] | None:
        """Keys [B, Hkv, past, hd] of earlier turns, and what they stand for."""
        if self.stages.past == 0:
            return None
        cached = self._cached(of)
        if cached is None or not rope:
            raise UnsupportedCallError(
                "scoring a new image against an earlier turn needs an unquantised DynamicCache "
                "and rotated keys"
            )
        at = self.number(of)
        keys = cached[:, :, : self.stages.past_width(at)]
        return keys, self.stages.past_seen(at).last(keys.shape[2])

    def all_keys(self, of: Of, rope: bool, row: int) -> Tensor:
        """[Hkv, P + Q, hd]: keys of earlier turns and of the chunk, in one row of the batch."""
        chunk, past = self.chunk_keys(of, rope)[row], self.past_keys(of, rope)
        return chunk if past is None else torch.cat([past[0][row], chunk], 1)

    def seen(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        """[R, P + Q] bool: which of `all_keys` some slots [R] attend to; none where padding."""
        chunk, window = self.stages.chunk_seen(), self.window(of)
        given = self.stages.given_masks
        given = given.get(self._kind(of)) if isinstance(given, Mapping) else given
        given = given[row : row + 1] if given is not None and len(given) > 1 else given
        columns = chunk.columns[row]
        own = inside(columns[None], given, self.stages.past, window, queries)[0]
        past = self.past_keys(of, rope)
        reached = [] if past is None else [past[1].reached(row, columns[queries], window)]
        if chunk.valid is not None:
            own = own & chunk.valid[row]
        seen = torch.cat([*reached, own], 1)
        return seen if chunk.valid is None else seen & chunk.valid[row, queries, None]

    def _cached(self, of: Of) -> Tensor | None:
        """Keys in the cache of the layer that `of` names, if it stores them plainly."""
        layers: list[Any] = self.stages.cache.layers if self.stages.cache is not None else []
        at = self.number(of)
        plain = at < len(layers) and type(layers[at]) is DynamicLayer
        return layers[at].keys if plain and layers[at].is_initialized else None

    def _embeddings(self, of: Of) -> tuple[Tensor, Tensor]:
        """cos and sin [B, Q, hd] of the chunk's tokens for the layer that `of` names."""
        kind, number = self._kind(of), self.number(of)
        if number < self.layer:
            cos, sin = self.stages.earlier.inputs[number][1:]
            return cos, sin
        if kind not in self.stages.embeddings:
            raise UnsupportedCallError(f"no layer before {self.layer} is of the kind {kind}")
        return self.stages.embeddings[kind]

    def window(self, of: Of) -> int | None:
        """The window of the layer that `of` names."""
        return self.stages.kinds.window_of(self._kind(of))

    def _kind(self, of: Of) -> str:
        return self.stages.kinds.names[self.number(of)]

    def number(self, of: Of) -> int:
        """The layer that `of` names; where it sees a window only, the nearest full one before it.

        Raises:
            UnsupportedCallError: there is no such layer.
        """
        number = self.layer + {"previous": -1, "this": 0, "next": 1}[of]
        if number >= len(self.layers):
            raise UnsupportedCallError(f"there is no layer after decoder layer {self.layer}")
        return self.stages.kinds.ranks_in(number)


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
        return self.span.index

    @property
    def visual(self) -> Tensor:
        return self.span.slots

    @property
    def text(self) -> Tensor:
        return self.context.stages.text[self.span.row]

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
        scaling = context.source(of)[0].self_attn.scaling
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
        mass = mass.to(slots.device) * (slots <= last[row])

        def seen(start: int, stop: int) -> Tensor:
            return context.seen(of, True, row, slots[start:stop])

        found = propagate(
            context.chunk_queries(of)[row],
            context.all_keys(of, True, row),
            context.source(of)[0].self_attn.scaling,
            mass,
            seen,
            temperature=temperature,
        )
        return found[..., -len(slots) :]

    def _look(self, of: Of) -> None:
        """Tell the report where a window ends behind the image and no full layer comes before."""
        window, trace = self.context.window(of), self.span.trace
        if window is None or self.span.reach < window:
            return
        note = (
            f"before decoder layer {self.layer} it was ranked in layer {self.context.number(of)}, "
            f"which sees {window} tokens back, and the image begins {self.span.reach} back: tokens "
            "further away count as 0, and no full layer comes before"
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
        return fired[self.span.row, rows].detach().float()


def ranked(context: CutContext, method: DecoderMethod) -> list[Tensor]:
    """Per image, ascending places of the tokens to keep among those that survive.

    What only the device knows of them is left to `StageLayout.checks`; the first places stand in
    for wrong ones until then, so that the forward can go on.

    Raises:
        VLMCompressError: the method gave another kind of thing, or another number.
    """
    return [_kept(context, method, span) for span in context.stages.spans]


def _kept(context: CutContext, method: DecoderMethod, span: Span) -> Tensor:
    alive, schedule = len(span.slots), span.trace.plan.schedule
    if context.layer not in schedule:
        return torch.arange(alive, device=context.hidden.device)
    count = min(schedule[context.layer], alive)
    kept = method.keep(DecoderLayerView(context, span), count)

    def wrong(given: object) -> VLMCompressError:
        number = "" if method.adaptive else f"{count} "
        return VLMCompressError(
            f"{method.name}: keep must give {number}ascending places of 0 to {alive - 1} (int64) "
            f"before layer {context.layer}, got {given!r}"
        )

    places = isinstance(kept, Tensor) and kept.dtype == torch.int64 and kept.dim() == 1
    if not places or not (len(kept) <= alive if method.adaptive else len(kept) == count):
        context.stages.checks.settle()  # a mistake of an earlier cut comes first
        raise wrong(kept.tolist() if isinstance(kept, Tensor) else kept)
    kept = kept.to(context.hidden.device)
    good = (kept.diff() > 0).all() & (kept[:1] >= 0).all() & (kept[-1:] < alive).all()
    context.stages.checks.expect(good, lambda: wrong(kept.tolist()))
    return kept.where(good, torch.arange(len(kept), device=kept.device))
