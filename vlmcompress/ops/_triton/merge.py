"""Kernels of merging: the best partner of each token, and the weighted sums of groups."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = (32, 64, 32)
"""Rows, columns and numbers of `best_match`: with 64 rows registers spill."""


@triton.jit
def best_match_kernel(
    row_ptr, column_ptr, row_strength_ptr, column_strength_ptr, closed_ptr, weight_ptr, found_ptr,
    R, C, D, power,
    stride_rb, stride_rn, stride_cb, stride_cn,
    STRENGTH: tl.constexpr, CLOSED: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Program (r, b): a block of rows of tile b beside all columns, the best of them on chip."""
    i_b = tl.program_id(1).to(tl.int64)
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    m_r = o_r < R
    b_best = tl.full((BR,), float("-inf"), tl.float32)
    b_found = tl.zeros((BR,), tl.int64)
    for i_c in range(0, C, BC):
        o_c = i_c + tl.arange(0, BC).to(tl.int64)
        m_c = o_c < C
        b_weight = tl.zeros((BR, BC), tl.float32)
        for i_d in range(0, D, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < D
            p_r = row_ptr + i_b * stride_rb + o_r[:, None] * stride_rn + o_d[None, :]
            p_c = column_ptr + i_b * stride_cb + o_c[None, :] * stride_cn + o_d[:, None]
            # [BR, BD], [BD, BC]
            b_r = tl.load(p_r, mask=m_r[:, None] & m_d[None, :], other=0.0)
            b_c = tl.load(p_c, mask=m_c[None, :] & m_d[:, None], other=0.0)
            b_weight = tl.dot(b_r, b_c, b_weight, input_precision="ieee")
        if STRENGTH:
            # [BR], [BC]
            b_own = tl.load(row_strength_ptr + i_b * R + o_r, mask=m_r, other=0.0)
            b_their = tl.load(column_strength_ptr + i_b * C + o_c, mask=m_c, other=0.0)
            b_near = tl.maximum((b_weight + 1) / 2, 0.0)
            b_weight = tl.exp2(power * tl.log2(b_near)) * b_own[:, None] * b_their[None, :]
        m_open = m_c
        if CLOSED:
            m_open = m_c & (tl.load(closed_ptr + i_b * C + o_c, mask=m_c, other=1) == 0)
        b_weight = tl.where(m_open[None, :], b_weight, float("-inf"))
        b_top, b_place = tl.max(
            b_weight, axis=1, return_indices=True, return_indices_tie_break_left=True
        )
        # Of equal weights the column that came first stays.
        m_better = b_top > b_best
        b_best = tl.where(m_better, b_top, b_best)
        b_found = tl.where(m_better, i_c + b_place, b_found)
    tl.store(weight_ptr + i_b * R + o_r, b_best, mask=m_r)
    tl.store(found_ptr + i_b * R + o_r, b_found, mask=m_r)


def best_match(
    rows: Tensor,
    columns: Tensor,
    strengths: tuple[Tensor, Tensor] | None = None,
    power: float = 1.0,
    closed: Tensor | None = None,
    blocks: tuple[int, int, int] = BLOCKS,
) -> tuple[Tensor, Tensor]:
    """See `vlmcompress.ops.merge.best_match`; no matrix of weights is stored."""
    (batch, count, width), others = rows.shape, columns.shape[1]
    rows, columns = (x if x.stride(2) == 1 else x.contiguous() for x in (rows, columns))
    weight = rows.new_empty(batch, count)
    found = torch.empty_like(weight, dtype=torch.long)
    own, their = (rows, rows) if strengths is None else (x.contiguous() for x in strengths)
    with torch.cuda.device_of(rows):
        best_match_kernel[(triton.cdiv(count, blocks[0]), batch)](
            rows, columns, own, their,
            rows if closed is None else closed.contiguous().view(torch.uint8), weight, found,
            count, others, width, power,
            rows.stride(0), rows.stride(1), columns.stride(0), columns.stride(1),
            STRENGTH=strengths is not None, CLOSED=closed is not None,
            BR=blocks[0], BC=blocks[1], BD=blocks[2],
        )  # fmt: skip
    return weight, found


@triton.jit
def segment_sum_kernel(
    x_ptr, member_ptr, offset_ptr, weight_ptr, y_ptr, D, stride_xn, stride_xd,
    WEIGHTED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Program (k, d): a block of the numbers of output k, member after member."""
    i_k = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)
    m_d = o_d < D
    b_sum = tl.zeros((BD,), tl.float32)
    for i_m in range(tl.load(offset_ptr + i_k), tl.load(offset_ptr + i_k + 1)):
        i_n = tl.load(member_ptr + i_m)
        # [BD]
        b_x = tl.load(x_ptr + i_n * stride_xn + o_d * stride_xd, mask=m_d, other=0.0).to(tl.float32)
        if WEIGHTED:
            b_x *= tl.load(weight_ptr + i_m)
        b_sum += b_x
    tl.store(y_ptr + i_k * D + o_d, b_sum, mask=m_d)


def segment_sum(
    values: Tensor,
    members: Tensor,
    offsets: Tensor,
    weights: Tensor | None = None,
    block: int = 512,
) -> Tensor:
    """See `vlmcompress.ops.groups.segment_sum`; no atomic additions, so the same bits each time."""
    count, width = len(offsets) - 1, values.shape[1]
    sums = values.new_empty(count, width, dtype=torch.float32)
    with torch.cuda.device_of(values):
        segment_sum_kernel[(count, triton.cdiv(width, block))](
            values, members.contiguous(), offsets.contiguous(),
            offsets if weights is None else weights.contiguous(),
            sums, width, *values.stride(), WEIGHTED=weights is not None, BD=block,
        )  # fmt: skip
    return sums
