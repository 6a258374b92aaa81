"""Attention as a score: float32 inside, the full matrix is never stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError

MAX_BYTES = 64 * 2**20
"""Working memory of `attention_received` and `propagate`: one block of attention rows."""


def attention_rows(q: Tensor, k: Tensor, scaling: float, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of some queries.

    Args:
        q: [..., H, R, d] queries, any floating dtype; the softmax is float32 (also under autocast).
        k: [..., Hkv, N, d] keys; the H query heads share them in Hkv groups of neighbours.
        scaling: factor of q @ k before the softmax.
        seen: bool, broadcast to [..., H, R, N]: what may be attended to; None for everything. A row
            that may attend to nothing is NaN.

    Returns:
        [..., H, R, N] float32.
    """
    with torch.autocast(q.device.type, enabled=False):
        # The heads of a group side by side, so that their key head is not repeated.
        grouped = q.float().reshape(*k.shape[:-2], -1, q.shape[-1])
        logits = grouped @ k.float().transpose(-1, -2) * scaling
        logits = logits.view(*q.shape[:-1], k.shape[-2])
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


def propagate(
    q: Tensor,
    k: Tensor,
    scaling: float,
    mass: Tensor,
    seen: Callable[[int, int], Tensor] | None = None,
    *,
    temperature: float = 1.0,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """One step of mass over the attention graph: mass @ softmax(logits / temperature).

    Rows are computed in blocks, so memory grows with N and not with R x N. A row that may attend to
    nothing hands nothing on.

    Args:
        q: [H, R, d] queries, any floating dtype.
        k: [Hkv, N, d] keys, shared as in `attention_rows`.
        scaling: factor of q @ k before the softmax.
        mass: of the rows: [R], or [H, R] for each head its own.
        seen: start, stop -> [stop - start, N] bool: what these rows may attend to; None for
            everything.
        temperature: above 0; the lower, the more goes to the largest logits.
        max_bytes: working memory for a block of rows; a block has at least one.

    Returns:
        [H, N] float32.
    """
    heads, queries, _ = q.shape
    q, k = q.detach(), k.detach().float()
    mass = mass.detach().float().expand(heads, queries)
    rows = max(1, max_bytes // max(1, 4 * heads * k.shape[-2]))
    total = torch.zeros(heads, k.shape[-2], device=q.device)
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        allowed = None if seen is None else seen(start, stop)
        weights = attention_rows(q[:, start:stop], k, scaling / temperature, allowed)
        if allowed is not None:
            weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0)
        with torch.autocast(q.device.type, enabled=False):
            total += torch.einsum("hr,hrn->hn", mass[:, start:stop], weights)
    return total
