"""Attention rows for decoder-stage methods, computed with a layer's own weights.

Only the rows that are asked for are computed, so SDPA and FlashAttention stay on in the model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.base import DecoderMethod
from vlmcompress.ops.select import top_k
from vlmcompress.patches.flow import Flow, Span
from vlmcompress.patches.masks import Seen
from vlmcompress.tokens import Grid

Of = Literal["this", "next", "previous"]


@dataclass
class CutContext:
    """All that is known before `layer`, where tokens are about to be dropped."""

    layer: int
    layers: nn.ModuleList
    flow: Flow
    hidden: Tensor
    """[B, Q, D]: input of `layer`."""
    _keys: dict[tuple[Of, bool], Tensor] = field(default_factory=dict)

    def source(self, of: Of) -> tuple[Any, Tensor]:
        """The layer whose weights are used and the hidden states it is applied to."""
        if of == "previous":
            assert self.flow.stash is not None
            return self.layers[self.layer - 1], self.flow.stash
        step = 1 if of == "next" else 0
        if self.layer + step >= len(self.layers):
            raise UnsupportedCallError(f"there is no layer after decoder layer {self.layer}")
        return self.layers[self.layer + step], self.hidden

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
        if (of, rope) not in self._keys:
            cached = self._cached(of)
            if of == "previous" and rope and cached is not None:
                # That layer has run, so its cache ends with the chunk's keys.
                self._keys[of, rope] = cached[:, :, -self.hidden.shape[1] :]
            else:
                self._keys[of, rope] = self.heads(of, "k", None, rope)
        return self._keys[of, rope]

    def past_keys(self, of: Of, rope: bool) -> tuple[Tensor, Seen] | None:
        """Keys [B, Hkv, past, hd] of earlier turns, and what they stand for."""
        if self.flow.past == 0:
            return None
        cached = self._cached(of)
        if cached is None or not rope:
            raise UnsupportedCallError(
                "scoring a new image against an earlier turn needs an unquantised DynamicCache "
                "and rotated keys"
            )
        at = self._number(of)
        keys = cached[:, :, : self.flow.past_width(at)]
        return keys, self.flow.past_seen(at).last(keys.shape[2])

    def _cached(self, of: Of) -> Tensor | None:
        """Keys in the cache of the layer that `of` names, if it stores them plainly."""
        layers: list[Any] = self.flow.cache.layers if self.flow.cache is not None else []
        at = self._number(of)
        plain = at < len(layers) and type(layers[at]) is DynamicLayer
        return layers[at].keys if plain and layers[at].is_initialized else None

    def _embeddings(self, of: Of) -> tuple[Tensor, Tensor]:
        """cos and sin [B, Q, hd] of the chunk's tokens for the layer that `of` names."""
        kind = self.flow.kinds.names[self._number(of)]
        if kind not in self.flow.embeddings:
            raise UnsupportedCallError(f"no layer before {self.layer} is of the kind {kind}")
        return self.flow.embeddings[kind]

    def window(self, of: Of) -> int | None:
        """The window of the layer that `of` names."""
        return self.flow.kinds.window_of(self.flow.kinds.names[self._number(of)])

    def _number(self, of: Of) -> int:
        return self.layer + {"previous": -1, "this": 0, "next": 1}[of]


@dataclass
class View:
    """The `LayerView` of one image; see `vlmcompress.methods.base.LayerView`."""

    context: CutContext
    span: Span

    @property
    def layer(self) -> int:
        return self.context.layer

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
        return self.context.flow.text[self.span.row]

    def attention(
        self,
        rows: Literal["last", "text"] = "last",
        keys: Literal["all", "visual"] = "all",
        *,
        rope: bool = True,
        of: Of = "this",
    ) -> Tensor:
        row, context = self.span.row, self.context
        assert context.flow.last is not None
        queries = context.flow.last[row : row + 1] if rows == "last" else self.text
        q = context.heads(of, "q", (row, queries), rope)[0].float()
        k = context.chunk_keys(of, rope)[row].float()
        seen = None
        if keys == "visual":
            k = k[:, self.visual]
        else:
            seen = torch.arange(k.shape[1], device=k.device) <= queries[:, None]
            chunk, window = context.flow.chunk_seen(), context.window(of)
            seen = seen if chunk.valid is None else seen & chunk.valid[row]
            columns = chunk.columns[row]
            if window is not None:
                seen = seen & (columns[queries][:, None] - columns < window)
            past = context.past_keys(of, rope)
            if past is not None:
                k = torch.cat([past[0][row].float(), k], 1)
                reached = past[1].reached(row, columns[queries], window)
                seen = torch.cat([reached, seen], 1)
        scaling = context.source(of)[0].self_attn.scaling
        weights = _softmax(q, k, scaling, seen)
        # Earlier turns take part in the softmax; only this chunk's columns are returned.
        return weights if keys == "visual" else weights[..., -context.hidden.shape[1] :]


def ranked(context: CutContext, method: DecoderMethod) -> list[Tensor]:
    """Per image, ascending places of the tokens to keep among those that survive."""
    kept = []
    for span in context.flow.spans:
        alive = len(span.slots)
        count = span.trace.plan.schedule.get(context.layer, alive)
        if 0 < count < alive:
            kept.append(top_k(method.score(View(context, span)), count))
        else:
            kept.append(torch.arange(min(count, alive), device=context.hidden.device))
    return kept


def _softmax(q: Tensor, k: Tensor, scaling: float, seen: Tensor | None) -> Tensor:
    """[H, R, K] attention of queries [H, R, hd] on keys [Hkv, K, hd]."""
    # Query heads of one group share a key head.
    grouped = q.view(k.shape[0], -1, *q.shape[1:])
    scores = torch.einsum("hgrd,hkd->hgrk", grouped, k) * scaling
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1).flatten(0, 1)
