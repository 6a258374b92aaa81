"""Attention as a score: float32 inside, the full matrix is never stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError

MAX_BYTES = 64 * 2**20
"""Working memory of `attention_received`: one block of attention rows."""


def attention_rows(q: Tensor, k: Tensor, scaling: float, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of some queries.

    Args:
        q: [..., H, R, d] queries, any floating dtype; the softmax is float32 (also under autocast).
        k: [..., H, N, d] keys, heads as in `q`.
        scaling: factor of q @ k before the softmax.
        seen: bool, broadcast to [..., H, R, N]: what may be attended to; None for everything.

    Returns:
        [..., H, R, N] float32.
    """
    with torch.autocast(q.device.type, enabled=False):
        logits = q.float() @ k.float().transpose(-1, -2) * scaling
    if seen is not None:
        logits = logits.masked_fill(~seen, float("-inf"))
    return logits.softmax(-1)


def attention_received(
    q: Tensor,
    k: Tensor,
    scaling: float,
    *,
    valid: Tensor | None = None,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """Attention that each key receives: the mean over heads and queries of its column.

    Rows are computed in blocks, so memory grows with N and not with N x N.

    Args:
        q: [..., H, N, d] queries, any floating dtype.
        k: [..., H, N, d] keys.
        scaling: factor of q @ k before the softmax.
        valid: [..., N] bool: tokens that are no padding. The others are not attended to, do not
            count as queries, and receive 0. Every sequence needs one valid token.
        max_bytes: working memory for a block of rows; a block has at least one.

    Returns:
        [..., N] float32; sums to 1 over the valid tokens.
    """
    *batch, heads, tokens, _ = q.shape
    q, k = q.detach(), k.detach().float()
    rows = max(1, max_bytes // max(1, 4 * math.prod(batch) * heads * tokens))
    seen = None if valid is None else valid[..., None, None, :]
    total = torch.zeros(*batch, tokens, device=q.device)
    for start in range(0, tokens, rows):
        weights = attention_rows(q[..., start : start + rows, :], k, scaling, seen)
        if valid is not None:
            weights = weights * valid[..., None, start : start + rows, None]
        total += weights.sum(dim=(-3, -2))
    queries = tokens if valid is None else valid.sum(-1, keepdim=True)
    return total / (heads * queries)


def attention_received_packed(
    q: Tensor, k: Tensor, scaling: float, lengths: Sequence[int], *, max_bytes: int = MAX_BYTES
) -> Tensor:
    """`attention_received` of sequences that lie one behind the other and do not see each other.

    A mean is over the queries of the key's own sequence, so that the values of each sequence sum to
    1: they compare within a sequence, and between sequences of equal length.

    Args:
        q: [H, P, d] queries, any floating dtype.
        k: [H, P, d] keys.
        scaling: factor of q @ k before the softmax.
        lengths: tokens of each sequence; they sum to P.
        max_bytes: working memory for a block of rows.

    Returns:
        [P] float32.

    Raises:
        VLMCompressError: the lengths do not sum to P.
    """
    if sum(lengths) != q.shape[1]:
        raise VLMCompressError(f"sequences of {sum(lengths)} tokens do not fit {q.shape[1]} keys")
    each = torch.tensor(lengths)
    starts = each.cumsum(0) - each
    received = torch.empty(q.shape[1], device=q.device)
    for length in sorted(set(lengths)):
        # Sequences of one length go together: windows are many and mostly alike.
        places = (starts[each == length, None] + torch.arange(length)).to(q.device)
        alike = [x[:, places].transpose(0, 1) for x in (q, k)]
        received[places] = attention_received(alike[0], alike[1], scaling, max_bytes=max_bytes)
    return received
