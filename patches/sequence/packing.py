"""Where kept tokens go: packing rows of unequal length and cutting masks to match.

A *slot* is a column of the physical (shortened) sequence. Rows that keep fewer tokens than the
longest are padded on the left, so that the last token of every row stays in the last slot; the
filler slots repeat some real token and are closed in every mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.ops.gather import take, take_pairs


def pack(keep: Tensor, size: int, ragged: bool) -> tuple[Tensor, Tensor | None]:
    """The kept slots of each row, in order, filled up on the left.

    Args:
        keep: [B, L] bool.
        size: the largest number kept in a row; known beforehand, so nothing waits for the device.
        ragged: whether rows keep different numbers.

    Returns:
        index [B, size] int64 and valid [B, size] bool, None where every slot is a kept token.
    """
    index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - size :]
    return index, keep.gather(1, index) if ragged else None


def slot_of(keep: Tensor, size: int) -> Tensor:
    """[B, L] int64: the slot that `pack` gives to each kept column (undefined for the others)."""
    kept = keep.long()
    return kept.cumsum(1) - 1 + (size - kept.sum(1, keepdim=True))


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Logical and, where None means all true."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def join(parts: list[tuple[Tensor | None, int]], batch: int, device: torch.device) -> Tensor | None:
    """Concatenate validity along columns; each part is (mask or None for all true, width)."""
    if all(mask is None for mask, _ in parts):
        return None
    return torch.cat(
        [
            torch.ones(batch, width, dtype=torch.bool, device=device) if mask is None else mask
            for mask, width in parts
        ],
        dim=1,
    )


def cut_mask(
    given: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    valid: Tensor | None,
    first_row: int,
    flash: bool,
) -> Tensor | None:
    """The attention mask of a layer that sees fewer tokens than the first layer.

    Args:
        given: the mask the model built for the first layer: None, [B, K0] (FlashAttention),
            [B, 1, Q0, K0] bool (SDPA) or float (eager).
        rows: [B, Q] slots of the queries among the first layer's Q0.
        keys: [B, K] slots of the keys among the first layer's K0.
        valid: [B, K] bool, or None for all valid.
        first_row: slot among the keys of query 0 of the first layer.
        flash: the attention implementation wants a 2-D mask.
    """
    if given is None:
        if valid is None or flash:
            return valid
        causal = keys[:, None, :] <= rows[:, :, None] + first_row
        return (causal & valid[:, None, :]).unsqueeze(1)
    # Embeddings may come from the device of the projector, and masks from that of the decoder.
    valid = None if valid is None else valid.to(given.device)
    if given.dim() == 2:
        return take(given, keys) if valid is None else take(given, keys) & valid.to(given.dtype)
    mask = take_pairs(given[:, 0], rows, keys)[:, None]
    if valid is None:
        return mask
    closed = ~valid[:, None, None, :]
    if mask.dtype == torch.bool:
        return mask & ~closed
    return mask.masked_fill(closed, torch.finfo(mask.dtype).min)
