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

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches.hooks.arguments import device_of
from vlmcompress.patches.sequence.attention_masks import Reach, VisibleKeys, inside
from vlmcompress.patches.sequence.stage_layout import Captured, StageLayout

Of = Literal["this", "next", "previous"]


@dataclass
class CutContext:
    """All that is known before `layer`, where tokens are about to be dropped."""

    layer: int
    layers: nn.ModuleList
    stages: StageLayout
    hidden: Tensor
    """[B, Q, D]: input of `layer`."""
    no_scores: str | None = None
    """Why queries and keys cannot be computed here; None where they can."""
    _heads: dict[tuple[str, Of, bool], Tensor] = field(default_factory=dict)

    def source(self, of: Of) -> tuple[Any, Tensor]:
        """The layer whose weights are used and the hidden states it is applied to."""
        number = self.number(of)
        layer, ran = self.layers[number], number < self.layer
        hidden = self.stages.earlier.inputs[number][0] if ran else self.hidden
        return layer, hidden.to(device_of(layer, hidden.device))

    def heads(self, of: Of, name: str, rows: tuple[int, Tensor] | None, rope: bool) -> Tensor:
        """Queries or keys [B, heads, R, hd] of all chunk tokens, or of some in one row."""
        captured = self._captured(of, rope)
        if captured is not None:
            queries = captured.queries if name == "q" else self._own_keys(captured)
            return queries if rows is None else queries[rows[0] : rows[0] + 1, :, rows[1]]
        layer, hidden = self.source(of)
        cos, sin = self._embeddings(of)
        if rows is not None:
            row, slots = rows
            hidden = hidden[row : row + 1, slots.to(hidden.device)]
            cos, sin = (
                x.expand(len(self.hidden), -1, -1)[row : row + 1, slots.to(x.device)]
                for x in (cos, sin)
            )
        attention = layer.self_attn
        flat = getattr(attention, f"{name}_proj")(layer.input_layernorm(hidden))
        heads: Tensor = flat.view(*flat.shape[:2], -1, attention.head_dim)
        norm = getattr(attention, f"{name}_norm", None)
        heads = (heads if norm is None else norm(heads)).transpose(1, 2)
        if not rope:
            return heads.to(self.hidden.device)
        # The family's own rotary function, found where its attention class was written.
        rotate: Any = sys.modules[type(attention).__module__]
        cos, sin = cos.to(heads.device), sin.to(heads.device)
        rotated: Tensor = rotate.apply_rotary_pos_emb(heads, heads, cos, sin)[0]
        return rotated.to(self.hidden.device)

    def chunk_keys(self, of: Of, rope: bool) -> Tensor:
        """[B, Hkv, Q, hd]: keys of the chunk's tokens at the current stage."""
        if ("k", of, rope) not in self._heads:
            cached = None if self.no_scores is not None else self._cached(of)
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
        at, captured = self.number(of), self._captured(of, rope)
        if captured is not None:
            keys = captured.keys[:, :, : -self.hidden.shape[1]]
            seen = self.stages.past_seen(at).last(keys.shape[2])
            return keys, self.stages.counted(self._kind(of), seen)
        cached = self._cached(of)
        if cached is None or not rope:
            raise UnsupportedCallError(
                "scoring a new image against an earlier turn needs an unquantised DynamicCache "
                "and rotated keys"
            )
        keys = cached[:, :, : self.stages.past_width(at)]
        seen = self.stages.past_seen(at).last(keys.shape[2])
        return keys, self.stages.counted(self._kind(of), seen)

    def all_keys(self, of: Of, rope: bool, row: int) -> Tensor:
        """[Hkv, P + Q, hd]: keys of earlier turns and of the chunk, in one row of the batch."""
        chunk, past = self.chunk_keys(of, rope)[row], self.past_keys(of, rope)
        return chunk if past is None else torch.cat([past[0][row], chunk], 1)

    def seen(self, of: Of, rope: bool, row: int, queries: Tensor) -> Tensor:
        """[R, P + Q] bool: which of `all_keys` some slots [R] attend to; none where padding."""
        kind, reach = self._kind(of), self.reach(of)
        chunk = self.stages.counted(kind, self.stages.chunk_seen())
        queries = queries.to(chunk.columns.device)
        given = self.stages.given_masks
        given = given.get(kind) if isinstance(given, Mapping) else given
        given = given[row : row + 1] if given is not None and len(given) > 1 else given
        columns = chunk.columns[row]
        both_ways = self.stages.kinds.both_ways
        own = inside(columns[None], given, self.stages.past, reach, queries, both_ways)[0]
        past = self.past_keys(of, rope)
        reached = [] if past is None else [past[1].reached(row, columns[queries], reach)]
        if chunk.valid is not None:
            own = own & chunk.valid[row]
        seen = torch.cat([*reached, own], 1)
        captured = self._captured(of, rope)
        if captured is not None and captured.mask is not None and captured.mask.dim() == 4:
            seen = seen & _shown(captured.mask, row, queries)[:, -seen.shape[1] :].to(seen.device)
        seen = seen if chunk.valid is None else seen & chunk.valid[row, queries, None]
        return seen.to(self.hidden.device)

    def scaling(self, of: Of) -> float:
        """What products of queries and keys are multiplied with."""
        captured = self._captured(of, True)
        found: float = (
            self.source(of)[0].self_attn.scaling if captured is None else captured.scaling
        )
        return found

    def _captured(self, of: Of, rope: bool) -> Captured | None:
        """What the layer before the cut kept for itself, where computing it anew is no way."""
        if self.no_scores is None:
            return None
        nearest = of == "previous" and self.number(of) == self.layer - 1
        found = self.stages.captured if nearest and rope else None
        if found is None:
            raise UnsupportedModelError(
                f"scores of layer {self.number(of)} ({'with' if rope else 'without'} positions) "
                f"are not known before layer {self.layer}, as {self.no_scores}: use fastv or "
                "another method that ranks by the layer before, which must have attention, or a "
                "projector-stage method"
            )
        return found

    def _own_keys(self, captured: Captured) -> Tensor:
        return captured.keys[:, :, -self.hidden.shape[1] :]

    def _cached(self, of: Of) -> Tensor | None:
        """Keys in the cache of the layer that `of` names, if it stores them plainly."""
        layers: list[Any] = self.stages.cache.layers if self.stages.cache is not None else []
        at = self.number(of)
        plain = at < len(layers) and type(layers[at]) is DynamicLayer
        keys = layers[at].keys if plain and layers[at].is_initialized else None
        return None if keys is None else keys.to(self.hidden.device)

    def _embeddings(self, of: Of) -> tuple[Tensor, Tensor]:
        """cos and sin [B, Q, hd] of the chunk's tokens for the layer that `of` names."""
        kind, number = self._kind(of), self.number(of)
        if number < self.layer:
            cos, sin = self.stages.earlier.inputs[number][1:]
            return cos, sin
        if kind not in self.stages.arguments.embeddings:
            raise UnsupportedCallError(f"no layer before {self.layer} is of the kind {kind}")
        found: tuple[Tensor, Tensor] = self.stages.arguments.embeddings[kind]
        return found

    def reach(self, of: Of) -> Reach | None:
        """How far back the layer that `of` names sees."""
        return self.stages.kinds.reach_of(self._kind(of))

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
        # What a layer kept for itself is known of the layer before the cut only.
        return number if self.no_scores is not None else self.stages.kinds.ranks_in(number)


def _shown(mask: Tensor, row: int, queries: Tensor) -> Tensor:
    """[R, K] bool: what a mask of a layer lets some queries of a row of the batch see."""
    mine = mask[row if len(mask) > 1 else 0, 0, queries.to(mask.device)]
    return mine if mine.dtype == torch.bool else mine > torch.finfo(mine.dtype).min / 2
