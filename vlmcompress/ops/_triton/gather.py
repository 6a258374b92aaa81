"""Kernel of `vlmcompress.ops.gather`: one launch takes the same tokens of several tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TENSORS = 4
BLOCK = 1024


@triton.jit
def _copy(x_ptr, y_ptr, stride_xb, stride_xl, stride_xd, D, i_row, i_token, i_out, i_d,
          BD: tl.constexpr):  # fmt: skip
    """Block `i_d` of the D numbers of a token."""
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    # [BD]
    b_x = tl.load(x_ptr + i_row * stride_xb + i_token * stride_xl + o_d * stride_xd, mask=m_d)
    tl.store(y_ptr + i_out * D + o_d, b_x, mask=m_d)


@triton.jit
def take_kernel(
    index_ptr, K,
    x0_ptr, y0_ptr, stride_x0b, stride_x0l, stride_x0d, D0, end0,
    x1_ptr, y1_ptr, stride_x1b, stride_x1l, stride_x1d, D1, end1,
    x2_ptr, y2_ptr, stride_x2b, stride_x2l, stride_x2d, D2, end2,
    x3_ptr, y3_ptr, stride_x3b, stride_x3l, stride_x3d, D3, end3,
    BD: tl.constexpr,
):  # fmt: skip
    """Program (o, i): block i of output token o. Blocks are counted through the tensors.

    Tensor n has the blocks below `end`n that no tensor before it has.
    """
    i_out = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1).to(tl.int64)
    i_row, i_token = i_out // K, tl.load(index_ptr + i_out)
    if i_block < end0:
        _copy(x0_ptr, y0_ptr, stride_x0b, stride_x0l, stride_x0d, D0,
              i_row, i_token, i_out, i_block, BD)  # fmt: skip
    elif i_block < end1:
        _copy(x1_ptr, y1_ptr, stride_x1b, stride_x1l, stride_x1d, D1,
              i_row, i_token, i_out, i_block - end0, BD)  # fmt: skip
    elif i_block < end2:
        _copy(x2_ptr, y2_ptr, stride_x2b, stride_x2l, stride_x2d, D2,
              i_row, i_token, i_out, i_block - end1, BD)  # fmt: skip
    else:
        _copy(x3_ptr, y3_ptr, stride_x3b, stride_x3l, stride_x3d, D3,
              i_row, i_token, i_out, i_block - end2, BD)  # fmt: skip


def take(tensors: Sequence[Tensor], index: Tensor, block: int = BLOCK) -> list[Tensor]:
    """See `vlmcompress.ops.gather.take_all`; all tensors are on one device."""
    taken: list[Tensor] = []
    for start in range(0, len(tensors), TENSORS):
        taken += _launch(tensors[start : start + TENSORS], index, block)
    return taken


def _launch(tensors: Sequence[Tensor], index: Tensor, block: int) -> list[Tensor]:
    index = index.to(tensors[0].device).contiguous()
    taken, arguments, blocks = [], [], 0
    for x in tensors:
        y = x.new_empty(index.shape + x.shape[2:])
        taken.append(y)
        flat, width = x.flatten(2) if x.dim() > 3 else x, y.shape[2:].numel()
        row = 0 if len(x) == 1 else flat.stride(0)
        inner = flat.stride(2) if flat.dim() == 3 else 0
        blocks += triton.cdiv(width, block)
        arguments.append((_bytes(flat), _bytes(y), row, flat.stride(1), inner, width, blocks))
    # What stands for tensors that are not there has no blocks.
    arguments += arguments[-1:] * (TENSORS - len(tensors))
    with torch.cuda.device_of(index):
        take_kernel[(index.numel(), blocks)](
            index, index.shape[1], *(one for some in arguments for one in some), BD=block
        )
    return taken


def _bytes(x: Tensor) -> Tensor:
    """Truth values as the bytes that they are kept in."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x
