"""One call of an attention module of a vision tower: its keys, and the attention that it gave.

The attention implementation of the model stays as it is: only the rows or column sums that a method
needs are computed, from what the module's own projections gave, with its norms and rotary function,
or from what it attended with, where that is watched.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows
from vlmcompress.patches.hooks.arguments import on_host
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.attended import Attended

QUERIES_AND_KEYS = ("qkv", "q_proj", "k_proj", "q", "k")
"""Projections that give them, as attention modules name them."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention module.

    A tower takes images as a batch [B, n, D] (`q_proj`, `k_proj`), or the patches of all images as
    one sequence [P, D] (`qkv`, with `cu_seqlens`). Results begin with [B, n] or [P] accordingly.
    """

    attention: Any
    hidden: Tensor
    kwargs: Mapping[str, Any]
    cls: int = 0
    """Which token of an image is its CLS, where it has one."""
    projected: dict[str, Tensor] = field(default_factory=dict)
    """Projection -> what it gave, for the layer has mostly computed it already."""
    attended: list[Attended] = field(default_factory=list)
    """What it attended with, where that is watched: once, or once for each segment."""

    def received(self, bias: Tensor | None = None) -> Tensor:
        """[B, n] or [P] float32: attention received, mean over heads and the segment's queries.

        Args:
            bias: [B, n] or [P]: what was added to the logits of each key.
        """
        if self.attended:
            return received_by(self.attended, bias).view(self.hidden.shape[:-1])
        q, k = self._heads(self._flat("q")), self._heads(self._flat("k"))
        if not self._packed:
            q, k = biased(q, k, self.scaling, bias)
            return attention_received(q, k, self.scaling, valid=self._valid())
        # The family's own rotary function, found where its attention class was written.
        rotate: Any = sys.modules[type(self.attention).__module__]
        q, k = rotate.apply_rotary_pos_emb_vision(
            q.transpose(0, 1), k.transpose(0, 1), *self.kwargs["position_embeddings"]
        )
        q, k = biased(q.transpose(0, 1), k.transpose(0, 1), self.scaling, bias)
        return attention_received_packed(q, k, self.scaling, self.lengths())

    def lengths(self) -> list[int]:
        """Of the segments of a sequence of patches."""
        ends = on_host(self.kwargs["cu_seqlens"])
        return [end - start for start, end in pairwise(ends)]

    def cls_row(self) -> Tensor:
        """[B, n] float32: attention of CLS to all tokens, mean over heads."""
        if self.attended:
            (seen,) = self.attended
            query, key = seen.queries[:, :, self.cls, None], _shared(seen)
            return attention_rows(query, key, seen.options["scaling"], mean=True)[:, 0]
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
            flat = self._projection("qkv").chunk(3, dim=-1)["qk".index(name)]
        else:
            known = f"{name}_proj"
            flat = self._projection(known if hasattr(self.attention, known) else name)[:, :rows]
        norm = getattr(self.attention, f"{name}_norm", None)
        weight = getattr(norm, "weight", None)
        if norm is None or weight is None:
            return flat
        width = weight.shape[-1]  # of all heads, or of each
        normed: Tensor = norm(flat.unflatten(-1, (-1, width))).flatten(-2)  # type: ignore[no-untyped-call]
        return normed

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
        return None if mask is None else _open_keys(mask).expand(len(self.hidden), -1)


def note_projections(
    attached: Attachments, attention: Any, running: Callable[[], AttentionCall | None]
) -> None:
    """Note what the projections of queries and keys give, in the call that `running` says."""

    def note(name: str, module: Any, args: Any, output: Tensor) -> None:
        call = running()
        if call is not None:
            call.projected[name] = output.detach()

    for name in QUERIES_AND_KEYS:
        if (projection := getattr(attention, name, None)) is not None:
            attached.look(projection, functools.partial(note, name))


def biased(q: Tensor, k: Tensor, scaling: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """q @ k * scaling + bias [..., n] of each key, as one more dimension of both [..., H, n, d]."""
    if bias is None:
        return q, k
    more = bias.float()[..., None, :, None].expand(*k.shape[:-1], 1)
    root = math.sqrt(scaling)
    q = torch.cat([q.float(), torch.full_like(more, 1 / root)], -1)
    return q, torch.cat([k.float(), more / root], -1)


def received_by(calls: Sequence[Attended], bias: Tensor | None = None) -> Tensor:
    """[B, n] or [P] float32: what keys received in the calls of one module, a segment each or all.

    The mean is over heads and over the queries that may see the key.

    Args:
        calls: of the module, with masks that do not hold the bias.
        bias: [B, n] or [P]: what was added to the logits of each key.
    """
    first, mask = calls[0], calls[0].mask
    ends, scaling = first.options.get("cu_seq_lens_q"), float(first.options["scaling"])
    lengths = [seen.keys.shape[2] for seen in calls]
    if ends is not None:
        lengths = [end - start for start, end in pairwise(on_host(ends))]
    elif len(calls) == 1:
        lengths = [] if mask is None else _blocks(mask)
    if not lengths:
        valid = None if mask is None else _open_keys(mask).expand(len(first.keys), -1)
        q, k = biased(first.queries, _shared(first), scaling, bias)
        return attention_received(q, k, scaling, valid=valid)
    q = torch.cat([seen.queries for seen in calls], 2)[0]
    k = torch.cat([_shared(seen) for seen in calls], 2)[0]
    q, k = biased(q, k, scaling, bias)
    return attention_received_packed(q, k, scaling, lengths)


def _shared(seen: Attended) -> Tensor:
    """[B, H, n, d]: keys, those of a group of heads once for each."""
    return seen.keys.repeat_interleave(seen.queries.shape[1] // seen.keys.shape[1], 1)


def open_where(mask: Tensor) -> Tensor:
    """Where a mask of either kind lets queries see."""
    return mask if mask.dtype in (torch.bool, torch.long) else mask == 0


def _open_keys(mask: Tensor) -> Tensor:
    """[B, n] bool of a mask under which all queries see the same keys, so that one row says all."""
    return (open_where(mask[:, 0, 0]) if mask.dim() == 4 else open_where(mask)).bool()


def _blocks(mask: Tensor) -> list[int]:
    """Lengths of the segments that a mask [1, 1, n, n] keeps apart; none where it does not."""
    if mask.dim() < 4 or len(mask) > 1 or mask.shape[2] < 2:
        return []
    rows = open_where(mask[0, 0])
    if bool((rows == rows[:1]).all()):
        return []
    starts = torch.unique_consecutive(rows.int().argmax(-1)).tolist()
    return [end - start for start, end in pairwise([*starts, len(rows)])]
