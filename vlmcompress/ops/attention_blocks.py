"""Blocks of attention rows, float32: of what size, and how one is computed."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BYTES = 64 * 2**20
"""Working memory for one block."""

_CACHED_BYTES = 4 * 2**20
# A block that a CPU need not fetch back from main memory; larger ones take 2 to 4 times as long.


def block_bytes(like: Tensor, max_bytes: int) -> int:
    """Bytes of logits that are best computed together."""
    return min(max_bytes, _CACHED_BYTES) if like.device.type == "cpu" else max_bytes


def softmax_weights(
    q: Tensor, k: Tensor, scaling: float, seen: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """[h, G, R, N] float32 softmax of queries [h, G, R, d] over keys [h, N, d], each head alone."""
    flat = (q.float() * scaling).flatten(1, 2)
    k = k.float()
    if flat.shape[1] == 1:  # as a product with a vector, several times faster on a CPU
        logits = matmul(k, flat.transpose(1, 2)).transpose(1, 2)
    else:
        logits = matmul(flat, k.transpose(1, 2))
    logits = logits.view(*q.shape[:-1], k.shape[1])
    if seen is not None:
        logits.masked_fill_(~seen, float("-inf"))
    return torch.softmax(logits, -1, out=out)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
