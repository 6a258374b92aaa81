"""One call of an attention module of a vision tower: its keys, and the attention that it gave.

The attention implementation of the model stays as it is: only the rows or column sums that a method
needs are computed, from what the module's own projections gave, with its norms and rotary function.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows
from vlmcompress.patches.hooks.arguments import on_host


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention module.

    A tower takes images as a batch [B, n, D] (`q_proj`, `k_proj`), or the patches of all images as
    one sequence [P, D] (`qkv`, with `cu_seqlens`). Results begin with [B, n] or [P] accordingly.
    """

    attention: Any
    hidden: Tensor
    kwargs: Mapping[str, Any]
    projected: dict[str, Tensor] = field(default_factory=dict)
    """Projection -> what it gave, for the layer has mostly computed it already."""

    def received(self) -> Tensor:
        """[B, n] or [P] float32: attention received, mean over heads and the segment's queries."""
        q, k = self._heads(self._flat("q")), self._heads(self._flat("k"))
        if not self._packed:
            return attention_received(q, k, self.scaling, valid=self._valid())
        # The family's own rotary function, found where its attention class was written.
        rotate: Any = sys.modules[type(self.attention).__module__]
        q, k = rotate.apply_rotary_pos_emb_vision(
            q.transpose(0, 1), k.transpose(0, 1), *self.kwargs["position_embeddings"]
        )
        ends = on_host(self.kwargs["cu_seqlens"])
        lengths = [end - start for start, end in pairwise(ends)]
        return attention_received_packed(
            q.transpose(0, 1), k.transpose(0, 1), self.scaling, lengths
        )

    def cls_row(self) -> Tensor:
        """[B, n] float32: attention of token 0 to all tokens, mean over heads."""
        q, k = self._heads(self._flat("q", rows=1)), self._heads(self._flat("k"))
        return attention_rows(q, k, self.scaling, mean=True)[:, 0]

    def keys(self) -> Tensor:
        """[B, n, Dk] or [P, Dk]: keys before rotary embedding, heads side by side."""
        return self._flat("k")

    def heads(self, name: Literal["q", "k"]) -> Tensor:
        """[..., H, n, d]: queries or keys after their norm, before rotary embedding."""
        return self._heads(self._flat(name))

    @property
    def _packed(self) -> bool:
        return hasattr(self.attention, "qkv")

    @property
    def scaling(self) -> float:
        """Factor of queries @ keys."""
        attention = self.attention
        return float(attention.scale if hasattr(attention, "scale") else attention.scaling)

    def _flat(self, name: str, rows: int | None = None) -> Tensor:
        """Queries or keys of the first `rows` tokens (or all) after their norm, heads together."""
        if self._packed:
            return self._projection("qkv").chunk(3, dim=-1)["qk".index(name)]
        flat = self._projection(f"{name}_proj")[:, :rows]
        norm = getattr(self.attention, f"{name}_norm", None)
        return flat if norm is None else norm(flat)

    def _projection(self, name: str) -> Tensor:
        if name not in self.projected:
            self.projected[name] = getattr(self.attention, name)(self.hidden)
        return self.projected[name]

    def _heads(self, flat: Tensor) -> Tensor:
        """[..., n, D] -> [..., H, n, d]."""
        heads = flat.reshape(*flat.shape[:-1], -1, self.attention.head_dim)
        return heads.transpose(-2, -3)

    def _valid(self) -> Tensor | None:
        """[B, n] bool from the mask of padded images, None without."""
        mask: Tensor | None = self.kwargs.get("attention_mask")
        if mask is None:
            return None
        if mask.dim() == 4:  # every query sees the same keys, so one row says all
            mask = mask[:, 0, 0]
            mask = mask if mask.dtype == torch.bool else mask == 0
        return mask.bool().expand(len(self.hidden), -1)
