"""Attention as a score: float32 inside, the full matrix is never stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.backend import use_triton

MAX_BYTES = 64 * 2**20
"""Working memory of `attention_received` and `propagate`: one block of attention rows."""

GRAPH_BYTES = 256 * 2**20
"""Memory of `propagate` for the attention graphs of a few heads."""

_CACHED_BYTES = 4 * 2**20
# A block that a CPU need not fetch back from main memory; larger ones take 2 to 4 times as long.


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
    step = max(1, _block(q, MAX_BYTES) // (4 * tokens * max(copied, heads // shared * rows, 1)))
    for start in range(0, count, step):
        own = slice(start, start + step)
        _weights(grouped[own], k[own], scaling, seen, out=found[own])
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
    block = _block(q, max_bytes)
    rows = max(1, min(tokens, block // (4 * tokens)))
    step = max(1, block // (4 * tokens * rows))
    total = q.new_zeros(len(q), tokens, dtype=torch.float32)
    for first in range(0, len(q), step):
        own = slice(first, first + step)
        keys, open_ = k[own].float(), None if valid is None else valid[own]
        seen = None if open_ is None else open_[:, None, None]
        for start in range(0, tokens, rows):
            some = slice(start, start + rows)
            weights = _weights(q[own, None, some], keys, scaling, seen)[:, 0]
            if open_ is not None:
                weights *= open_[:, some, None]
            total[own] += weights.sum(-2)
    total = total.view(*batch, heads, tokens).sum(-2)
    queries = (
        tokens if valid is None else valid.view(*batch, heads, tokens)[..., 0, :].sum(-1, True)
    )
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
    steps: int = 1,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """Steps of mass over the attention graph, each mass @ softmax(logits / temperature).

    Rows are computed in blocks. One step never holds the graph, so memory grows with N and not with
    R x N; of several the graph is made once, a few heads at a time, up to `GRAPH_BYTES` (8192
    tokens), and anew for every step beyond. A row that may attend to nothing hands nothing on.

    Args:
        q: [H, R, d] queries, any floating dtype.
        k: [Hkv, N, d] keys, shared as in `attention_rows`.
        scaling: factor of q @ k before the softmax.
        mass: of the rows: [R], or [H, R] for each head its own.
        seen: start, stop -> [stop - start, N] bool: what these rows may attend to; None for
            everything.
        temperature: above 0; the lower, the more goes to the largest logits.
        steps: after each, what the last R columns received is the mass of the rows.
        max_bytes: working memory for a block of rows; a block has at least one.

    Returns:
        [H, N] float32.
    """
    (heads, queries, _), tokens = q.shape, k.shape[1]
    q, k, scaling = q.detach(), k.detach().float(), scaling / temperature
    mass = mass.detach().float().expand(heads, queries)
    if steps > 1 and 4 * queries * tokens <= GRAPH_BYTES:
        return _over_graph(q, k, scaling, mass, seen, steps, _block(q, max_bytes))
    for _ in range(steps):
        received = _handed_on(q, k, scaling, mass, seen, _block(q, max_bytes))
        mass = received[:, -queries:]
    return received


def _handed_on(
    q: Tensor,
    k: Tensor,
    scaling: float,
    mass: Tensor,
    seen: Callable[[int, int], Tensor] | None,
    block: int,
) -> Tensor:
    """[H, N]: one step, without the graph."""
    (heads, queries, width), (shared, tokens, _) = q.shape, k.shape
    grouped = q.view(shared, heads // shared, queries, width)
    mass = mass.view(grouped.shape[:-1])
    rows = max(1, min(queries, block // (4 * heads // shared * tokens)))
    step = max(1, block // (4 * heads // shared * tokens * rows))
    total = q.new_zeros(*grouped.shape[:2], tokens, dtype=torch.float32)
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        allowed = None if seen is None else seen(start, stop)
        some = mass[..., start:stop]
        if allowed is not None:
            blind = ~allowed.any(-1)
            some, allowed = some.masked_fill(blind, 0), allowed | blind[:, None]
        for first in range(0, shared, step):
            own = slice(first, first + step)
            weights = _weights(grouped[own, :, start:stop], k[own], scaling, allowed)
            total[own] += _product(some[own, :, None], weights)[:, :, 0]
    return total.flatten(0, 1)


def _over_graph(
    q: Tensor,
    k: Tensor,
    scaling: float,
    mass: Tensor,
    seen: Callable[[int, int], Tensor] | None,
    steps: int,
    block: int,
) -> Tensor:
    """[H, N]: several steps, the graph of a few heads at a time."""
    (heads, queries, _), (shared, tokens, _) = q.shape, k.shape
    # A CPU goes through one graph as long as it is near; a card is to have much to do at once.
    step = 1 if q.is_cpu else min(heads, max(1, GRAPH_BYTES // (4 * queries * tokens)))
    rows = max(1, min(queries, block // (4 * tokens * step)))
    spans = [(start, min(start + rows, queries)) for start in range(0, queries, rows)]
    blocks = [(span, *_open(None if seen is None else seen(*span), tokens)) for span in spans]
    # What no row of a block may attend to stays 0.
    graph = q.new_zeros(step, queries, tokens, dtype=torch.float32)
    found = []
    for first in range(0, heads, step):
        own = range(first, min(first + step, heads))
        some, keys = graph[: len(own)], k[[head // (heads // shared) for head in own]]
        for (start, stop), (low, high), allowed, blind in blocks:
            queried = q[own.start : own.stop, None, start:stop]
            made = _weights(queried, keys[:, low:high], scaling, allowed)[:, 0]
            some[:, start:stop, low:high] = made if blind is None else made.masked_fill_(blind, 0)
        moved = mass[own.start : own.stop]
        for _ in range(steps):
            moved = _product(moved[:, None, -queries:], some)[:, 0]
        found.append(moved)
    return torch.cat(found)


def _open(
    allowed: Tensor | None, tokens: int
) -> tuple[tuple[int, int], Tensor | None, Tensor | None]:
    """The columns that a block of rows needs, what it may see of them, and [r, 1] which rows see
    nothing. Only a CPU looks for the columns, as another device would be waited for."""
    if allowed is None:
        return (0, tokens), None, None
    low, high, blind = 0, tokens, ~allowed.any(-1, keepdim=True)
    if _near(allowed):
        columns = allowed.any(0).nonzero()[:, 0]
        low, high = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
    return (low, high), allowed[:, low:high] | blind, blind


def _near(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device."""
    return tensor.is_cpu


def _block(like: Tensor, max_bytes: int) -> int:
    """Bytes of logits that are best computed together."""
    return min(max_bytes, _CACHED_BYTES) if like.device.type == "cpu" else max_bytes


def _weights(
    q: Tensor, k: Tensor, scaling: float, seen: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """[h, G, R, N] float32 softmax of queries [h, G, R, d] over keys [h, N, d], each head alone."""
    flat = (q.float() * scaling).flatten(1, 2)
    k = k.float()
    if flat.shape[1] == 1:  # as a product with a vector, several times faster on a CPU
        logits = _product(k, flat.transpose(1, 2)).transpose(1, 2)
    else:
        logits = _product(flat, k.transpose(1, 2))
    logits = logits.view(*q.shape[:-1], k.shape[1])
    if seen is not None:
        logits.masked_fill_(~seen, float("-inf"))
    return torch.softmax(logits, -1, out=out)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
