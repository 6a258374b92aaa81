"""Attention rows for decoder-stage methods, computed with a layer's own weights.

Only the rows that are asked for are computed, so SDPA and FlashAttention stay on in the model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.ops.propagation import propagate
from vlmcompress.ops.score import attention_rows
from vlmcompress.patches.decoder.cut_context import CutContext, Of
from vlmcompress.patches.hooks.arguments import device_of
from vlmcompress.patches.sequence.attention_masks import VisibleKeys
from vlmcompress.patches.sequence.layer_heads import unrotated_heads


@dataclass
class ComputedAttention(CutContext):
    """For layers whose norm, projections and rotary function have the usual names."""

    _heads: dict[tuple[str, Of, bool], Tensor] = field(default_factory=dict)
    _sources: dict[Of, tuple[Any, Tensor]] = field(default_factory=dict)

    def rows(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        q = self.heads(of, "q", (row, queries), rope)[0]
        seen = self._seen(of, rope, row, queries)
        weights = attention_rows(q, self.all_keys(of, rope, row), self.scaling(of), seen)
        return weights[..., -self.hidden.shape[1] :]

    def rows_among(self, of: Of, rope: bool, row: int, queries: Tensor, slots: Tensor) -> Tensor:
        q = self.heads(of, "q", (row, queries), rope)[0]
        return attention_rows(q, self.chunk_keys(of, rope)[row][:, slots], self.scaling(of))

    def spread(
        self, of: Of, row: int, mass: Tensor, known: Tensor, temperature: float, steps: int
    ) -> Tensor:
        slots = torch.arange(self.hidden.shape[1], device=self.hidden.device)

        def seen(start: int, stop: int) -> Tensor:
            return self._seen(of, True, row, slots[start:stop]) & known[start:stop, None]

        found = propagate(
            self.chunk_queries(of)[row],
            self.all_keys(of, True, row),
            self.scaling(of),
            mass,
            seen,
            temperature=temperature,
            steps=steps,
        )
        return found[..., -len(slots) :]

    def source(self, of: Of) -> tuple[Any, Tensor]:
        """The layer whose weights are used and the hidden states it is applied to."""
        if of not in self._sources:
            number = self.number(of)
            layer, ran = self.layers[number], number < self.layer
            hidden = self.stages.earlier.inputs[number][0] if ran else self.hidden
            self._sources[of] = layer, hidden.to(device_of(layer, hidden.device))
        return self._sources[of]

    def heads(self, of: Of, name: str, rows: tuple[int, Tensor] | None, rope: bool) -> Tensor:
        """Queries or keys [B, heads, R, hd] of all chunk tokens, or of some in one row."""
        layer, hidden = self.source(of)
        cos, sin = self._embeddings(of)
        if rows is not None:
            row, slots = rows
            hidden = hidden[row : row + 1, slots.to(hidden.device)]
            cos, sin = (
                x.expand(len(self.hidden), -1, -1)[row : row + 1, slots.to(x.device)]
                for x in (cos, sin)
            )
        heads = unrotated_heads(layer, name, hidden)
        if not rope:
            return heads.to(self.hidden.device)
        # The family's own rotary function, found where its attention class was written.
        rotate: Any = sys.modules[type(layer.self_attn).__module__]
        cos, sin = cos.to(heads.device), sin.to(heads.device)
        rotated: Tensor = rotate.apply_rotary_pos_emb(heads, heads, cos, sin)[0]
        return rotated.to(self.hidden.device)

    def chunk_keys(self, of: Of, rope: bool) -> Tensor:
        if ("k", of, rope) not in self._heads:
            number, cached = self.number(of), self._cached(of)
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
        keys = cached[:, :, : self.stages.past_width(self.number(of))]
        return keys, self.past_seen(of, keys.shape[2])

    def all_keys(self, of: Of, rope: bool, row: int) -> Tensor:
        """[Hkv, P + Q, hd]: keys of earlier turns and of the chunk, in one row of the batch."""
        chunk, past = self.chunk_keys(of, rope)[row], self.past_keys(of, rope)
        return chunk if past is None else torch.cat([past[0][row], chunk], 1)

    def scaling(self, of: Of) -> float:
        """What products of queries and keys are multiplied with."""
        layer: Any = self.layers[self.number(of)]
        found: float = layer.self_attn.scaling
        return found

    def _seen(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        past = self.past_keys(of, rope)
        return self.seen(of, row, queries, None if past is None else past[1])

    def _cached(self, of: Of) -> Tensor | None:
        """Keys in the cache of the layer that `of` names, if it stores them plainly."""
        layers: list[Any] = self.stages.cache.layers if self.stages.cache is not None else []
        at = self.number(of)
        plain = at < len(layers) and type(layers[at]) is DynamicLayer
        keys = layers[at].keys if plain and layers[at].is_initialized else None
        return None if keys is None else keys.to(self.hidden.device)

    def _embeddings(self, of: Of) -> tuple[Tensor, Tensor]:
        """cos and sin [B, Q, hd] of the chunk's tokens for the layer that `of` names."""
        kind, number = self.kind(of), self.number(of)
        if number < self.layer:
            cos, sin = self.stages.earlier.inputs[number][1:]
            return cos, sin
        if kind not in self.stages.arguments.embeddings:
            raise UnsupportedCallError(f"no layer before {self.layer} is of the kind {kind}")
        found: tuple[Tensor, Tensor] = self.stages.arguments.embeddings[kind]
        return found
