"""Kernels of `vlmcompress.ops.coverage`: all picks in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmcompress.ops._triton.select import BLOCK, cosine_matrix
from vlmcompress.ops.similarity import check_norms

PART = 16
"""Cholesky rows, or columns, that are read at once."""


@triton.jit
def dpp_kernel(
    y_ptr, worth_ptr, left_ptr, factor_ptr, pick_ptr, N, K, NOTHING: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program: K picks by worth * sqrt(left), `left` [N] reduced by a Cholesky row a pick.

    A picked row has a worth of -1. `factor` [K, N] holds the Cholesky rows.
    """
    o_b, o_k = tl.arange(0, BN), tl.arange(0, BK)
    p_last = factor_ptr
    i_pick = tl.full([], 0, dtype=tl.int64)
    for i_k in range(K + 1):
        highest, at = -float("inf"), i_pick
        own = tl.load(left_ptr + i_pick)
        # Every thread has read it before any thread writes it.
        tl.debug_barrier()
        for i_n in range(0, N, BN):
            o_n = i_n + o_b
            m_n = o_n < N
            # [BN]
            b_worth = tl.load(worth_ptr + o_n, mask=m_n, other=0.0)
            b_left = tl.load(left_ptr + o_n, mask=m_n, other=0.0)
            if i_k > 0:
                b_row = tl.load(y_ptr + i_pick * N + o_n, mask=m_n, other=0.0)
                for i_s in range(0, i_k - 1, BK):
                    o_s = i_s + o_k
                    m_s = o_s < i_k - 1
                    p_s = factor_ptr + o_s.to(tl.int64) * N
                    # [BK], [BK, BN]
                    b_at = tl.load(p_s + i_pick, mask=m_s, other=0.0)
                    b_f = tl.load(p_s[:, None] + o_n[None, :],
                                  mask=m_s[:, None] & m_n[None, :], other=0.0)  # fmt: skip
                    b_row -= tl.sum(b_at[:, None] * b_f, 0)
                b_row = tl.where(own > 0, b_row / tl.sqrt_rn(tl.maximum(own, NOTHING)), 0.0)
                tl.store(p_last + o_n, b_row, mask=m_n)
                b_left -= b_row * b_row
                b_left = tl.where(b_left > NOTHING, b_left, 0.0)
                tl.store(left_ptr + o_n, b_left, mask=m_n)
                b_worth = tl.where(o_n == i_pick, -1.0, b_worth)
                tl.store(worth_ptr + o_n, b_worth, mask=m_n)
            b_gain = tl.where(b_worth < 0, b_worth, b_worth * tl.sqrt_rn(b_left))
            b_gain = tl.where(m_n, b_gain, -float("inf"))
            high, place = tl.max(b_gain, 0, return_indices=True, return_indices_tie_break_left=True)
            at = tl.where(high > highest, place + i_n, at).to(tl.int64)
            highest = tl.maximum(highest, high)
        tl.debug_barrier()
        i_pick = at
        if i_k > 0:
            p_last += N
        if i_k < K:
            tl.store(pick_ptr + i_k, i_pick)


@triton.jit
def _gain(y_ptr, covered_ptr, i_column, R, stride_yr, stride_yc, BR: tl.constexpr):
    """How much more column `i_column` covers; the same sum wherever it is worked out."""
    b_gain = tl.zeros([BR], dtype=tl.float32)
    for i_r in range(0, R, BR):
        o_r = i_r + tl.arange(0, BR)
        m_r = o_r < R
        # [BR]
        b_y = tl.load(y_ptr + o_r.to(tl.int64) * stride_yr + i_column * stride_yc,
                      mask=m_r, other=0.0)  # fmt: skip
        b_covered = tl.load(covered_ptr + o_r, mask=m_r, other=0.0)
        b_gain += tl.maximum(b_y - b_covered, 0.0)
    return tl.sum(b_gain, 0)


@triton.jit
def gain_kernel(
    y_ptr, covered_ptr, weight_ptr, gain_ptr, R, stride_yr, stride_yc, BR: tl.constexpr
):
    """Program n: the weighted gain of column n."""
    i_n = tl.program_id(0).to(tl.int64)
    gain = _gain(y_ptr, covered_ptr, i_n, R, stride_yr, stride_yc, BR)
    tl.store(gain_ptr + i_n, gain * tl.load(weight_ptr + i_n))


@triton.jit
def cover_kernel(
    y_ptr, covered_ptr, weight_ptr, gain_ptr, known_ptr, pick_ptr, R, N, K, stride_yr, stride_yc,
    BR: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One program: K picks by the highest gain, worked out again until the best is up to date.

    No gain rises, so one of an earlier step is a bound. `known` [N] is the step of each gain; a
    picked column has a gain of -1.
    """
    i_k = 0
    while i_k < K:
        highest, i_best = -float("inf"), tl.full([], 0, dtype=tl.int64)
        for i_n in range(0, N, BN):
            o_n = i_n + tl.arange(0, BN)
            # [BN]
            b_gain = tl.load(gain_ptr + o_n, mask=o_n < N, other=-float("inf"))
            high, place = tl.max(b_gain, 0, return_indices=True, return_indices_tie_break_left=True)
            i_best = tl.where(high > highest, place + i_n, i_best).to(tl.int64)
            highest = tl.maximum(highest, high)
        known = tl.load(known_ptr + i_best)
        tl.debug_barrier()
        if known == i_k:
            tl.store(pick_ptr + i_k, i_best)
            tl.store(gain_ptr + i_best, -1.0)
            for i_r in range(0, R, BR):
                o_r = i_r + tl.arange(0, BR)
                m_r = o_r < R
                # [BR]
                b_y = tl.load(y_ptr + o_r.to(tl.int64) * stride_yr + i_best * stride_yc,
                              mask=m_r, other=0.0)  # fmt: skip
                b_covered = tl.load(covered_ptr + o_r, mask=m_r, other=0.0)
                tl.store(covered_ptr + o_r, tl.maximum(b_covered, b_y), mask=m_r)
            i_k += 1
        else:
            gain = _gain(y_ptr, covered_ptr, i_best, R, stride_yr, stride_yc, BR)
            tl.store(gain_ptr + i_best, gain * tl.load(weight_ptr + i_best))
            tl.store(known_ptr + i_best, i_k)
        tl.debug_barrier()


def dpp_map(
    rows: Tensor, count: int, worth: Tensor, nothing: float, block: int = 1024, part: int = PART
) -> Tensor:
    """See `vlmcompress.ops.coverage.dpp_map`: [count] picks of [N, D] as picked."""
    made, norm = cosine_matrix(rows[None])
    tokens = len(rows)
    left = (norm[0] > 0).float()
    factor = left.new_empty(count, tokens)
    picks = torch.empty(count, dtype=torch.long, device=rows.device)
    size = min(triton.next_power_of_2(tokens), block)
    with torch.cuda.device_of(rows):
        dpp_kernel[(1,)](
            made, worth.clone(), left, factor, picks, tokens, count,
            NOTHING=nothing, BN=size, BK=part, num_warps=8,
        )  # fmt: skip
    check_norms(norm)
    return picks


def facility_location(
    similarity: Tensor, count: int, weights: Tensor, block: int = BLOCK
) -> Tensor:
    """See `vlmcompress.ops.coverage.facility_location`: [count] columns as picked."""
    rows, tokens = similarity.shape
    # A column is read at once, so it lies together.
    across = similarity.T.contiguous()
    strides = across.stride(1), across.stride(0)
    covered, gain = across.new_zeros(rows), across.new_empty(tokens)
    known = torch.zeros(tokens, dtype=torch.int32, device=across.device)
    picks = torch.empty(count, dtype=torch.long, device=across.device)
    down = min(triton.next_power_of_2(rows), block)
    # As many warps as below, or the sums of equal columns would round differently.
    with torch.cuda.device_of(across):
        gain_kernel[(tokens,)](across, covered, weights, gain, rows, *strides, BR=down, num_warps=8)
        cover_kernel[(1,)](
            across, covered, weights, gain, known, picks, rows, tokens, count, *strides,
            BR=down, BN=min(triton.next_power_of_2(tokens), block), num_warps=8,
        )  # fmt: skip
    return picks
