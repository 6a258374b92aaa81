"""Kernel of `vlmcompress.ops.pool`: the weighted mean of every window, of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmcompress.tokens import Grid


@triton.jit
def pool_kernel(
    x_ptr, score_ptr, t_ptr, h_ptr, w_ptr, y_ptr, H, W, A, B, D, stride_xn, stride_xd,
    SCORES: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Program (k, d): a block of the numbers of window k, one of A x B in each part of time.

    `t`, `h` and `w` hold first place and size of the windows along their axis.
    """
    i_k = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)
    m_d = o_d < D
    p_t, p_h, p_w = t_ptr + i_k // (A * B) * 2, h_ptr + i_k // B % A * 2, w_ptr + i_k % B * 2
    i_t, T = tl.load(p_t), tl.load(p_t + 1)
    i_h, h = tl.load(p_h), tl.load(p_h + 1)
    i_w, w = tl.load(p_w), tl.load(p_w + 1)
    o_w = tl.arange(0, BW)
    peak, total = float("-inf"), (T * h * w).to(tl.float32)
    if SCORES:
        # The largest score first, so that no exponential overflows.
        for i_line in range(T * h):
            i_start = ((i_t + i_line // h) * H + i_h + i_line % h) * W + i_w
            for i_c in range(0, w, BW):
                # [BW]
                b_s = tl.load(score_ptr + i_start + i_c + o_w, i_c + o_w < w, float("-inf"))
                peak = tl.maximum(peak, tl.max(b_s.to(tl.float32)))
        total = 0.0
        for i_line in range(T * h):
            i_start = ((i_t + i_line // h) * H + i_h + i_line % h) * W + i_w
            for i_c in range(0, w, BW):
                # [BW]
                b_s = tl.load(score_ptr + i_start + i_c + o_w, i_c + o_w < w, float("-inf"))
                total += tl.sum(tl.exp(b_s.to(tl.float32) - peak))
    b_sum = tl.zeros((BD,), tl.float32)
    for i_line in range(T * h):
        i_start = ((i_t + i_line // h) * H + i_h + i_line % h) * W + i_w
        for i_n in range(i_start, i_start + w):
            # [BD]
            b_x = tl.load(x_ptr + i_n * stride_xn + o_d * stride_xd, mask=m_d, other=0.0)
            b_x = b_x.to(tl.float32)
            if SCORES:
                b_x *= tl.exp(tl.load(score_ptr + i_n).to(tl.float32) - peak)
            b_sum += b_x
    tl.store(y_ptr + i_k * D + o_d, b_sum / total, mask=m_d)


def pool(
    features: Tensor,
    grid: Grid,
    spans: Sequence[Tensor],
    scores: Tensor | None,
    blocks: tuple[int, int] = (512, 32),
) -> Tensor:
    """[K, D] float32: means of the windows, in raster order.

    Args:
        features: [N, D] finite, any floating dtype.
        grid: of the features.
        spans: for time, height and width [P, 2] int64: first place and size of each window.
        scores: [N] finite; the weights in a window are their softmax over it. None for a mean.
        blocks: numbers of a feature, and scores, that a program holds at once.
    """
    t, h, w = (span.contiguous() for span in spans)
    count, width = len(t) * len(h) * len(w), features.shape[1]
    pooled = features.new_empty(count, width, dtype=torch.float32)
    with torch.cuda.device_of(features):
        pool_kernel[(count, triton.cdiv(width, blocks[0]))](
            features, features if scores is None else scores.contiguous(), t, h, w, pooled,
            grid.h, grid.w, len(h), len(w), width, *features.stride(),
            SCORES=scores is not None, BD=blocks[0], BW=blocks[1],
        )  # fmt: skip
    return pooled
