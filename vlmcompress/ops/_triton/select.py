"""Kernels of `vlmcompress.ops.select`: half a product for all cosines, one launch for all picks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmcompress.ops.similarity import check_norms, directions

BLOCK = 4096
"""Values of the running vector that the threads of one program hold in registers."""


@triton.jit
def cosine_kernel(
    x_ptr, scale_ptr, y_ptr, N, D, stride_xb, stride_xn, stride_xd,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Program (p, b): tile p of the upper half of image b, written to both halves."""
    i_pair, i_image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    # Tiles (row, column) with row <= column are counted column by column.
    i_column = ((tl.sqrt(8.0 * i_pair.to(tl.float32) + 1) - 1) / 2).to(tl.int64)
    # The root may be off by one either way.
    i_column -= (i_column * (i_column + 1) // 2 > i_pair).to(tl.int64)
    i_column += ((i_column + 1) * (i_column + 2) // 2 <= i_pair).to(tl.int64)
    i_row = i_pair - i_column * (i_column + 1) // 2
    # Within a tile 32 bits are enough; what leads to it is 64 bits wide.
    i_row, i_column = i_row * BN, i_column * BN
    o_n = tl.arange(0, BN)
    m_r, m_c = i_row + o_n < N, i_column + o_n < N
    p_r = x_ptr + i_image * stride_xb + i_row * stride_xn
    p_c = x_ptr + i_image * stride_xb + i_column * stride_xn
    o_d = tl.arange(0, BD)
    b_y = tl.zeros([BN, BN], dtype=tl.float32)
    for i_d in range(0, D, BD):
        m_d = i_d + o_d < D
        # [BN, BD], [BD, BN]
        b_r = tl.load(p_r + (o_n[:, None] * stride_xn + o_d[None, :] * stride_xd),
                      mask=m_r[:, None] & m_d[None, :], other=0.0)  # fmt: skip
        b_c = tl.load(p_c + (o_n[None, :] * stride_xn + o_d[:, None] * stride_xd),
                      mask=m_c[None, :] & m_d[:, None], other=0.0)  # fmt: skip
        b_y += tl.dot(b_r, b_c, input_precision="ieee")
        p_r += BD * stride_xd
        p_c += BD * stride_xd
    # [BN]
    b_sr = tl.load(scale_ptr + i_image * N + i_row + o_n, mask=m_r, other=0.0)
    b_sc = tl.load(scale_ptr + i_image * N + i_column + o_n, mask=m_c, other=0.0)
    b_y = b_y * b_sr[:, None] * b_sc[None, :]
    p_y = y_ptr + i_image * N * N
    # A tile on the diagonal writes its own upper half twice, so that both halves are equal.
    m_y = m_r[:, None] & m_c[None, :] & (i_row + o_n[:, None] <= i_column + o_n[None, :])
    tl.store(p_y + i_row * N + i_column + (o_n[:, None] * N + o_n[None, :]), b_y, mask=m_y)
    tl.store(p_y + i_column * N + i_row + (o_n[None, :] * N + o_n[:, None]), b_y, mask=m_y)


@triton.jit
def loneliest_kernel(y_ptr, near_ptr, N, BN: tl.constexpr):
    """Program (n, b): the largest cosine of row n of image b with another row that has one."""
    i_row, i_image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p_y = y_ptr + i_image * N * N
    b_near = tl.full([BN], -float("inf"), dtype=tl.float32)
    for i_n in range(0, N, BN):
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < N
        b_y = tl.load(p_y + i_row * N + o_n, mask=m_n, other=0.0)
        # A row without a direction has no cosine with itself.
        b_own = tl.load(p_y + o_n.to(tl.int64) * (N + 1), mask=m_n, other=0.0)
        b_near = tl.where((b_own > 0) & (o_n != i_row), tl.maximum(b_near, b_y), b_near)
    tl.store(near_ptr + i_image * N + i_row, tl.max(b_near, 0))


@triton.jit
def greedy_kernel(
    y_ptr, near_ptr, first_ptr, pick_ptr, N, K,
    SUM: tl.constexpr, HELD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Program b: the K picks of image b; each is the lowest of the running vector `near` [B, N].

    The vector takes up the row of each pick by its sum or its maximum. HELD: one block is all of
    it and stays in registers; else it is written to `near` and read again.
    """
    i_image = tl.program_id(0).to(tl.int64)
    p_y, p_near = y_ptr + i_image * N * N, near_ptr + i_image * N
    o_b = tl.arange(0, BN)
    i_pick = tl.load(first_ptr + i_image)
    b_near = tl.load(p_near + o_b, mask=o_b < N, other=float("inf"))
    for i_k in range(K):
        tl.store(pick_ptr + i_image * K + i_k, i_pick)
        lowest, at = float("inf"), i_pick
        for i_n in range(0, N, BN):
            o_n = i_n + o_b
            m_n = o_n < N
            if not HELD:
                b_near = tl.load(p_near + o_n, mask=m_n, other=float("inf"))
            # [BN]
            b_row = tl.load(p_y + i_pick * N + o_n, mask=m_n, other=0.0)
            if SUM:
                b_near += b_row
            else:
                b_near = tl.maximum(b_near, b_row)
            b_near = tl.where(o_n == i_pick, float("inf"), b_near)
            if not HELD:
                tl.store(p_near + o_n, b_near, mask=m_n)
            low, place = tl.min(b_near, 0, return_indices=True, return_indices_tie_break_left=True)
            # Blocks ascend: only a lower value beats an earlier one.
            at = tl.where(low < lowest, place + i_n, at).to(tl.int64)
            lowest = tl.minimum(lowest, low)
        if not HELD:
            tl.debug_barrier()
        i_pick = at


def cosine_matrix(images: Tensor, tile: int | None = None) -> tuple[Tensor, Tensor]:
    """Cosines [B, N, N] float32 of [B, N, D], symmetric, and the norms [B, N]."""
    batch, tokens, width = images.shape
    unit, norm = directions(images)
    norm = norm[..., 0]
    half = images.dtype in (torch.bfloat16, torch.float16)
    if half:
        # Tensor cores multiply these exactly and add in float32; the interpreter cannot.
        rows = images if images.is_cuda else images.float()
        scale = norm.reciprocal().masked_fill(norm == 0, 0.0)
    else:
        rows, scale = unit, torch.ones_like(norm)
    made = norm.new_empty(batch, tokens, tokens)
    tile = tile or (128 if half else 64)
    tiles = triton.cdiv(tokens, tile)
    with torch.cuda.device_of(images):
        cosine_kernel[(tiles * (tiles + 1) // 2, batch)](
            rows, scale, made, tokens, width, *rows.stride(), BN=tile, BD=32, num_warps=tile // 16
        )
    return made, norm


def greedy(
    made: Tensor, near: Tensor, first: Tensor, count: int, *, summed: bool, block: int = BLOCK
) -> Tensor:
    """[B, count] int64 picks; `near` [B, N] float32 is overwritten, `first` [B] is picked first."""
    batch, tokens = near.shape
    picks = torch.empty(batch, count, dtype=torch.long, device=near.device)
    held = tokens <= 2 * block
    size = triton.next_power_of_2(tokens) if held else block
    with torch.cuda.device_of(near):
        greedy_kernel[(batch,)](
            made, near, first, picks, tokens, count, SUM=summed, HELD=held, BN=size, num_warps=16
        )
    return picks


def farthest_point(images: Tensor, count: int, block: int = BLOCK) -> Tensor:
    """See `vlmcompress.ops.select.farthest_point`: [B, count] picks of [B, N, D] as picked."""
    made, norm = cosine_matrix(images)
    near = torch.empty_like(norm)
    batch, tokens = norm.shape
    with torch.cuda.device_of(near):
        loneliest_kernel[(tokens, batch)](made, near, tokens, BN=min(1024, block))
    lost = norm == 0
    # 3 is above every cosine: rows without a direction wait until all others are taken.
    first = near.masked_fill(lost, 3.0).argmin(-1)
    near = torch.where(lost, 3.0, -torch.inf)
    picks = greedy(made, near, first, count, summed=False, block=block)
    check_norms(norm)
    return picks


def max_sum(rows: Tensor, count: int, pivot: int, block: int = BLOCK) -> Tensor:
    """See `vlmcompress.ops.select.max_sum`: [count] picks of [N, D] as picked."""
    made, norm = cosine_matrix(rows[None])
    first = torch.full((1,), pivot, device=rows.device)
    near = torch.where(norm == 0, 1e30, 0.0)
    picks = greedy(made, near, first, count, summed=True, block=block)
    check_norms(norm)
    return picks[0]
