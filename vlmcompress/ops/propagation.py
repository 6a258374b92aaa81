"""Mass handed on over the graph of attention: float32 inside, in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlmcompress.ops.attention_blocks import MAX_BYTES, block_bytes, matmul, softmax_weights

GRAPH_BYTES = 256 * 2**20
"""Memory of `propagate` for the attention graphs of a few heads."""


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
        return _over_graph(q, k, scaling, mass, seen, steps, block_bytes(q, max_bytes))
    for _ in range(steps):
        received = _handed_on(q, k, scaling, mass, seen, block_bytes(q, max_bytes))
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
            weights = softmax_weights(grouped[own, :, start:stop], k[own], scaling, allowed)
            total[own] += matmul(some[own, :, None], weights)[:, :, 0]
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
            made = softmax_weights(queried, keys[:, low:high], scaling, allowed)[:, 0]
            some[:, start:stop, low:high] = made if blind is None else made.masked_fill_(blind, 0)
        moved = mass[own.start : own.stop]
        for _ in range(steps):
            moved = matmul(moved[:, None, -queries:], some)[:, 0]
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
