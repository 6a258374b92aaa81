"""Taking the tokens that are left out of everything that the decoder is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmcompress.ops.backend import use_triton


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of `x` at `index`, whatever stands behind their axis.

    Args:
        x: [B or 1, L, ...] any dtype; one row serves all rows of `index`.
        index: [B, K] int64 in 0..L-1, on any device.

    Returns:
        [B, K, ...] on the device of `x`.
    """
    return take_all([x], index)[0]


def take_all(tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """`take` from several tensors at once.

    Where the kernel runs and all are on one device, up to four of them share a launch.

    Args:
        tensors: each [B or 1, L, ...], such as hidden states, positions, cos and sin, masks. Each
            has its own dtype, trailing axes and device.
        index: [B, K] int64 in 0..L-1.
    """
    alike = len({x.device for x in tensors}) == 1
    if use_triton("take", *tensors, **_sizes(tensors, index)) and alike:
        from vlmcompress.ops._triton.gather import take as kernel

        return kernel(tensors, index)
    return [_take(x, index.to(x.device)) for x in tensors]


def take_pairs(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows and columns of `mask` [B or 1, Q, K], by [B, R] and [B, C] int64 -> [B, R, C]."""
    some = take(mask, rows)
    columns = columns.to(mask.device)[:, None]
    return some.gather(2, columns.expand(-1, some.shape[1], -1))


def axes_last(positions: Tensor) -> Tensor:
    """Position ids as `take` reads them: the axes of M-RoPE [A, B, L] go last, [B, L] stays."""
    return positions.movedim(0, -1) if positions.dim() == 3 else positions


def axes_first(positions: Tensor) -> Tensor:
    """The way back, contiguous."""
    return positions.movedim(-1, 0).contiguous() if positions.dim() == 3 else positions


def _take(x: Tensor, index: Tensor) -> Tensor:
    # One index per token: gather() wants one per number, and is 10 to 40 times slower on a CPU.
    shape = index.shape + x.shape[2:]
    if len(x) == 1:
        return x[0].index_select(0, index.flatten()).view(shape)
    if x.dim() == 2:
        return x.gather(1, index)
    first = torch.arange(len(index), device=x.device)[:, None]
    if not _joins(x):
        return x[first, index]
    return x.flatten(0, 1).index_select(0, (first * x.shape[1] + index).flatten()).view(shape)


def _sizes(tensors: Sequence[Tensor], index: Tensor) -> dict[str, int]:
    """Tensors, rows, tokens before and after, and bytes of all numbers of a token."""
    batch, kept = index.shape
    length = tensors[0].shape[1] if tensors else 0
    each = sum(x.shape[2:].numel() * x.element_size() for x in tensors)
    return {"T": len(tensors), "B": batch, "L": length, "K": kept, "W": each}


def _joins(x: Tensor) -> bool:
    """Whether the first two axes are one without a copy."""
    return x.stride(0) == x.shape[1] * x.stride(1)
