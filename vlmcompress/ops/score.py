"""Attention as a score: float32 inside, the full matrix is never stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.attention_blocks import MAX_BYTES, block_bytes, softmax_weights
from vlmcompress.ops.backend import use_triton


def attention_rows(
    q: Tensor, k: Tensor, scaling: float, seen: Tensor | None = None, *, mean: bool = False
) -> Tensor:
    """Softmax attention of some queries, without gradients.

    Args:
        q: [..., H, R, d] queries, any floating dtype; the softmax is float32 (also under autocast).
        k: [..., Hkv, N, d] keys; the H query heads share them in Hkv groups of neighbours.
        scaling: factor of q @ k before the softmax.
        seen: bool [R, N], or broadcast to it: what may be attended to; None for everything. A row
            that may attend to nothing is NaN.
        mean: over the heads.

    Returns:
        [..., H, R, N] float32, with `mean` [..., R, N].
    """
    *batch, heads, rows, width = q.shape
    *_, shared, tokens, _ = k.shape
    count = math.prod(batch)
    sizes = {"B": count, "H": heads, "S": shared, "R": rows, "N": tokens, "d": width}
    if use_triton("attention_rows", q, k, **sizes, mean=mean, seen=seen is not None):
        from vlmcompress.ops._triton.score import attention_rows as kernel

        return kernel(q.detach(), k.detach(), scaling, seen, mean=mean)
    # The heads of a group side by side, so that their key head is not repeated.
    count *= shared
    grouped = q.detach().reshape(count, heads // shared, rows, width)
    k = k.detach().reshape(count, tokens, width)
    found = q.new_empty(*grouped.shape[:-1], tokens, dtype=torch.float32)
    copied = 0 if k.dtype == torch.float32 else width
    step = max(
        1, block_bytes(q, MAX_BYTES) // (4 * tokens * max(copied, heads // shared * rows, 1))
    )
    for start in range(0, count, step):
        own = slice(start, start + step)
        softmax_weights(grouped[own], k[own], scaling, seen, out=found[own])
    found = found.view(*batch, heads, rows, tokens)
    return found.mean(-3) if mean else found


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
    *batch, heads, tokens, width = q.shape
    q, k = (x.detach().reshape(-1, tokens, width) for x in (q, k))
    if valid is not None:
        valid = valid.reshape(-1, 1, tokens).expand(-1, heads, -1).reshape(len(q), tokens)
    sizes = {"H": len(q), "S": 1, "N": tokens, "d": width}
    if use_triton("attention_received", q, k, **sizes, valid=valid is not None):
        from vlmcompress.ops._triton.score import attention_received as kernel

        return kernel(q, k, scaling, [tokens], valid).view(*batch, heads, tokens).mean(-2)
    block = block_bytes(q, max_bytes)
    rows = max(1, min(tokens, block // (4 * tokens)))
    step = max(1, block // (4 * tokens * rows))
    total = q.new_zeros(len(q), tokens, dtype=torch.float32)
    for first in range(0, len(q), step):
        own = slice(first, first + step)
        keys, open_ = k[own].float(), None if valid is None else valid[own]
        seen = None if open_ is None else open_[:, None, None]
        for start in range(0, tokens, rows):
            some = slice(start, start + rows)
            weights = softmax_weights(q[own, None, some], keys, scaling, seen)[:, 0]
            if open_ is not None:
                weights *= open_[:, some, None]
            total[own] += weights.sum(-2)
    total = total.view(*batch, heads, tokens).sum(-2)
    queries = (
        tokens if valid is None else valid.view(*batch, heads, tokens)[..., 0, :].sum(-1, True)
    )
    return total / (heads * queries)


def attention_received_packed(
    q: Tensor, k: Tensor, scaling: float, lengths: Sequence[int]
) -> Tensor:
    """`attention_received` of sequences that lie one behind the other and do not see each other.

    A mean is over the queries of the key's own sequence, so that the values of each sequence sum to
    1: they compare within a sequence, and between sequences of equal length.

    Args:
        q: [H, P, d] queries, any floating dtype.
        k: [H, P, d] keys.
        scaling: factor of q @ k before the softmax.
        lengths: tokens of each sequence; they sum to P.

    Returns:
        [P] float32.

    Raises:
        VLMCompressError: the lengths do not sum to P.
    """
    if sum(lengths) != q.shape[1]:
        raise VLMCompressError(f"sequences of {sum(lengths)} tokens do not fit {q.shape[1]} keys")
    heads, tokens, width = q.shape
    longest = max(lengths, default=1)
    sizes = {"H": heads, "S": max(1, tokens // longest), "N": longest, "d": width}
    if use_triton("attention_received", q, k, **sizes, valid=False):
        from vlmcompress.ops._triton.score import attention_received as kernel

        return kernel(q.detach(), k.detach(), scaling, lengths, None).mean(0)
    each = torch.tensor(lengths)
    starts = each.cumsum(0) - each
    received = q.new_empty(q.shape[1], dtype=torch.float32)
    for length in sorted(set(lengths)):
        # Sequences of one length go together: windows are many and mostly alike.
        places = (starts[each == length, None] + torch.arange(length)).to(q.device)
        alike = [x[:, places].transpose(0, 1) for x in (q, k)]
        received[places] = attention_received(alike[0], alike[1], scaling)
    return received
