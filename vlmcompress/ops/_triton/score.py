"""Attention rows and column means without the matrix: statistics of rows, then a second pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # rows, and keys, that a program holds at a time
PROGRAMS = 256  # that fill a card: few rows alone would not, so several share their keys
SPLITS = 16  # at most of these
WARPS = 8  # with fewer, products of float32 spill registers
# Tensor cores multiply these exactly and add in float32; the interpreter multiplies their bits.
_WIDEN = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _load(p_x, m_x, stride_x, stride_d, o_d, D, BX: tl.constexpr):
    """[BX, BD] of the rows from `p_x` on, 0 outside. Offsets inside a block fit 32 bits."""
    p_x += tl.arange(0, BX)[:, None] * stride_x + o_d[None, :] * stride_d
    return tl.load(p_x, mask=m_x[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def _dot(p_q, m_m, stride_qm, stride_qd, p_k, m_n, stride_kn, stride_kd, o_d, D,
         BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    b_q = _load(p_q, m_m, stride_qm, stride_qd, o_d, D, BM)
    b_k = _load(p_k, m_n, stride_kn, stride_kd, o_d, D, BN)
    if _WIDEN:
        b_q, b_k = b_q.to(tl.float32), b_k.to(tl.float32)
    return tl.dot(b_q, tl.trans(b_k), input_precision="ieee")


@triton.jit
def _logits(p_q, m_m, stride_qm, stride_qd, p_k, m_n, stride_kn, stride_kd, scaling,
            D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """[BM, BN] float32: the queries from `p_q` on times the keys from `p_k` on."""
    o_d = tl.arange(0, BD)
    b_l = _dot(p_q, m_m, stride_qm, stride_qd, p_k, m_n, stride_kn, stride_kd, o_d, D, BM, BN)
    for start in range(BD, D, BD):
        b_l += _dot(p_q, m_m, stride_qm, stride_qd, p_k, m_n, stride_kn, stride_kd, start + o_d, D,
                    BM, BN)  # fmt: skip
    return b_l * scaling


@triton.jit
def _programs():
    return tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)


@triton.jit
def _online(b_max, b_sum, b_l):
    """The running maximum [BM] of rows and sum of exponentials, after logits [BM, BN]."""
    b_new = tl.maximum(b_max, tl.max(b_l, 1))
    # A row that has seen nothing yet has no maximum to subtract.
    b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_sum = b_sum * tl.exp(b_max - b_shift) + tl.sum(tl.exp(b_l - b_shift[:, None]), 1)
    return b_new, b_sum


@triton.jit
def rows_partial_kernel(
    q_ptr, k_ptr, seen_ptr, max_ptr, sum_ptr, scaling, heads, period, rows, keys, each,
    stride_qb, stride_qh, stride_qm, stride_qd, stride_kb, stride_kh, stride_kn, stride_kd,
    stride_sm, stride_sn,
    SEEN: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials of rows over one split of the keys: [B * H, rows, splits]."""
    i_h, i_m, i_s = _programs()
    i_b, i_a = i_h // heads, i_h % heads
    o_m = i_m * BM + tl.arange(0, BM)
    m_m = o_m < rows
    p_q = q_ptr + i_b * stride_qb + i_a * stride_qh + i_m * BM * stride_qm
    p_k = k_ptr + i_b * stride_kb + i_a * stride_kh
    p_s = seen_ptr + o_m % period * stride_sm
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    stop = tl.minimum((i_s + 1) * each, keys)
    for start in range(i_s * each, stop, BN):
        o_n = start + tl.arange(0, BN)
        m_n = o_n < stop
        b_l = _logits(p_q, m_m, stride_qm, stride_qd, p_k + start * stride_kn, m_n, stride_kn,
                      stride_kd, scaling, D, BM, BN, BD)  # fmt: skip
        m_l = m_m[:, None] & m_n[None, :]
        if SEEN:
            p_l = p_s[:, None] + o_n[None, :] * stride_sn
            m_l = m_l & (tl.load(p_l, mask=m_l, other=0) != 0)
        b_max, b_sum = _online(b_max, b_sum, tl.where(m_l, b_l, float("-inf")))
    p_out = (i_h * rows + o_m) * tl.num_programs(2) + i_s
    tl.store(max_ptr + p_out, b_max, mask=m_m)
    tl.store(sum_ptr + p_out, b_sum, mask=m_m)


@triton.jit
def rows_kernel(
    q_ptr, k_ptr, seen_ptr, max_ptr, sum_ptr, out_ptr, scaling, heads, group, loops, rows, keys,
    splits, period,
    stride_qb, stride_qh, stride_qm, stride_qd, stride_kb, stride_kh, stride_kn, stride_kd,
    stride_sm, stride_sn,
    SEEN: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    """Mean over `loops` heads of softmax rows: [B * heads / loops, rows, keys]."""
    i_o, i_m, i_n = _programs()
    o_m, o_n, o_s = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN), tl.arange(0, BS)
    m_m, m_n = o_m < rows, o_n < keys
    # [BM, BN]
    m_l = m_m[:, None] & m_n[None, :]
    m_seen = m_l
    if SEEN:
        p_l = seen_ptr + o_m[:, None] % period * stride_sm + o_n[None, :] * stride_sn
        m_seen = m_l & (tl.load(p_l, mask=m_l, other=0) != 0)
    b_out = tl.zeros([BM, BN], tl.float32)
    for loop in range(loops):
        i_h = i_o * loops + loop
        i_b, i_a = i_h // heads, i_h % heads
        # [BM, BS]
        p_s = (i_h * rows + o_m)[:, None] * splits + o_s[None, :]
        m_s = m_m[:, None] & (o_s < splits)[None, :]
        b_part = tl.load(max_ptr + p_s, mask=m_s, other=float("-inf"))
        b_sums = tl.load(sum_ptr + p_s, mask=m_s, other=0.0)
        b_max = tl.max(b_part, 1)
        # A split in which a row sees nothing has no maximum, and a sum of 0.
        b_share = tl.where(b_part == float("-inf"), 0.0, tl.exp(b_part - b_max[:, None]))
        b_sum = tl.sum(b_sums * b_share, 1)
        p_q = q_ptr + i_b * stride_qb + i_a * stride_qh + i_m * BM * stride_qm
        p_k = k_ptr + i_b * stride_kb + i_a // group * stride_kh + i_n * BN * stride_kn
        b_l = _logits(p_q, m_m, stride_qm, stride_qd, p_k, m_n, stride_kn, stride_kd, scaling,
                      D, BM, BN, BD)  # fmt: skip
        # -inf - -inf is NaN: a row that sees nothing has no weights.
        b_l = tl.where(m_seen, b_l, float("-inf")) - b_max[:, None]
        b_out += tl.exp(b_l) / b_sum[:, None]
    p_out = out_ptr + (i_o * rows + o_m)[:, None] * keys + o_n[None, :]
    tl.store(p_out, b_out / loops, mask=m_l)


@triton.jit
def _place(table_ptr, blocks):
    """The head of a program, the first token of its block, and the ends of that one's sequence."""
    i_p = tl.program_id(0).to(tl.int64)
    p_t = table_ptr + i_p % blocks * 3
    return i_p // blocks, tl.load(p_t), tl.load(p_t + 1), tl.load(p_t + 2)


@triton.jit
def received_rows_kernel(
    q_ptr, k_ptr, valid_ptr, table_ptr, max_ptr, sum_ptr, scaling, tokens, blocks,
    stride_qh, stride_qn, stride_qd, stride_kh, stride_kn, stride_kd,
    VALID: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials [H, N] of each row over the keys of its own sequence."""
    i_h, first, begin, end = _place(table_ptr, blocks)
    o_m = first + tl.arange(0, BM)
    m_m = o_m < end
    p_q = q_ptr + i_h * stride_qh + first * stride_qn
    p_k = k_ptr + i_h * stride_kh
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for start in range(begin, end, BN):
        o_n = start + tl.arange(0, BN)
        m_n = o_n < end
        b_l = _logits(p_q, m_m, stride_qn, stride_qd, p_k + start * stride_kn, m_n, stride_kn,
                      stride_kd, scaling, D, BM, BN, BD)  # fmt: skip
        if VALID:
            m_n = m_n & (tl.load(valid_ptr + i_h * tokens + o_n, mask=m_n, other=0) != 0)
        b_max, b_sum = _online(b_max, b_sum, tl.where(m_n[None, :], b_l, float("-inf")))
    tl.store(max_ptr + i_h * tokens + o_m, b_max, mask=m_m)
    tl.store(sum_ptr + i_h * tokens + o_m, b_sum, mask=m_m)


@triton.jit
def received_kernel(
    q_ptr, k_ptr, valid_ptr, table_ptr, max_ptr, sum_ptr, out_ptr, scaling, tokens, blocks,
    stride_qh, stride_qn, stride_qd, stride_kh, stride_kn, stride_kd,
    VALID: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """[H, N]: means of columns over the rows of their own sequence. BM counts rows, BN keys."""
    i_h, first, begin, end = _place(table_ptr, blocks)
    o_n = first + tl.arange(0, BN)
    m_n = o_n < end
    m_key = m_n
    if VALID:
        m_key = m_n & (tl.load(valid_ptr + i_h * tokens + o_n, mask=m_n, other=0) != 0)
    p_q = q_ptr + i_h * stride_qh
    p_k = k_ptr + i_h * stride_kh + first * stride_kn
    b_out = tl.zeros([BN], tl.float32)
    b_count = tl.zeros([BM], tl.float32)
    for start in range(begin, end, BM):
        o_m = start + tl.arange(0, BM)
        m_m = o_m < end
        b_l = _logits(p_q + start * stride_qn, m_m, stride_qn, stride_qd, p_k, m_n, stride_kn,
                      stride_kd, scaling, D, BM, BN, BD)  # fmt: skip
        b_max = tl.load(max_ptr + i_h * tokens + o_m, mask=m_m, other=0.0)
        b_sum = tl.load(sum_ptr + i_h * tokens + o_m, mask=m_m, other=1.0)
        if VALID:
            m_m = m_m & (tl.load(valid_ptr + i_h * tokens + o_m, mask=m_m, other=0) != 0)
        # [BM, BN]
        b_w = tl.exp(b_l - b_max[:, None]) / b_sum[:, None]
        b_out += tl.sum(tl.where(m_m[:, None] & m_key[None, :], b_w, 0.0), 0)
        b_count += m_m.to(tl.float32)
    tl.store(out_ptr + i_h * tokens + o_n, b_out / tl.sum(b_count, 0), mask=m_n)


def attention_rows(
    q: Tensor,
    k: Tensor,
    scaling: float,
    seen: Tensor | None,
    *,
    mean: bool,
    block: int = BLOCK,
    programs: int = PROGRAMS,
) -> Tensor:
    """See `vlmcompress.ops.score.attention_rows`; `block` is at least 16."""
    *batch, heads, rows, width = q.shape
    *_, shared, keys, _ = k.shape
    count, group = math.prod(batch), heads // shared
    out = q.new_empty(*batch, *(() if mean else (heads,)), rows, keys, dtype=torch.float32)
    if out.numel() == 0:
        return out
    q, k = _alike(q, k)
    q, k = q.reshape(count, heads, rows, width).contiguous(), k.reshape(count, shared, keys, width)
    # The heads of a group side by side, so that their key head is read once.
    grouped = q.view(count, shared, group * rows, width)
    mask = q if seen is None else seen.expand(rows, keys).view(torch.uint8)
    strides = *k.stride(), *mask.stride()[-2:]
    sizes = {"SEEN": seen is not None, **_sizes(q, block)}
    size, down = _fitting(group * rows, block)
    splits = max(1, min(triton.cdiv(keys, block), programs // (count * shared * down), SPLITS))
    each = triton.cdiv(triton.cdiv(keys, splits), block) * block
    splits = triton.cdiv(keys, each)
    highest, total = out.new_empty(2, count * heads * rows, splits).unbind()
    with torch.cuda.device_of(q):
        rows_partial_kernel[count * shared, down, splits](
            grouped, k, mask, highest, total, scaling, shared, rows, group * rows, keys, each,
            *grouped.stride(), *strides, BM=size, **sizes,
        )  # fmt: skip
        # A mean takes its heads one after the other; without, the rows of a group stay together.
        x, loops, group = (q, heads, group) if mean else (grouped, 1, 1)
        size, down = _fitting(x.shape[2], block)
        rows_kernel[count * x.shape[1] // loops, down, triton.cdiv(keys, block)](
            x, k, mask, highest, total, out, scaling, x.shape[1], group, loops, x.shape[2], keys,
            splits, rows, *x.stride(), *strides,
            BM=size, BS=triton.next_power_of_2(splits), **sizes,
        )  # fmt: skip
    return out


def attention_received(
    q: Tensor,
    k: Tensor,
    scaling: float,
    lengths: Sequence[int],
    valid: Tensor | None,
    *,
    block: int = BLOCK,
) -> Tensor:
    """[H, N] float32: see `vlmcompress.ops.score.attention_received_packed`, head by head.

    `valid` is [H, N] bool; `block` is at least 16.
    """
    heads, tokens, _ = q.shape
    q, k = _alike(q, k)
    out, highest, total = (q.new_empty(heads, tokens, dtype=torch.float32) for _ in range(3))
    ends = list(itertools.accumulate(lengths, initial=0))
    places = [(at, *ab) for ab in itertools.pairwise(ends) for at in range(*ab, block)]
    table = torch.tensor(places, device=q.device)
    mask = q if valid is None else valid.contiguous().view(torch.uint8)
    given = q, k, mask, table, highest, total
    numbers = scaling, tokens, len(table), *q.stride(), *k.stride()
    sizes = {"VALID": valid is not None, "BM": block, **_sizes(q, block)}
    with torch.cuda.device_of(q):
        received_rows_kernel[(heads * len(table),)](*given, *numbers, **sizes)
        received_kernel[(heads * len(table),)](*given, out, *numbers, **sizes)
    return out


def _alike(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """In one dtype that a kernel can multiply: autocast may leave them in two."""
    known = (torch.float32, torch.float16, torch.bfloat16)
    return (q, k) if q.dtype == k.dtype and q.dtype in known else (q.float(), k.float())


def _fitting(rows: int, block: int) -> tuple[int, int]:
    """Rows that a program holds, and how many programs that makes."""
    size = min(block, max(16, triton.next_power_of_2(rows)), 32)
    return size, triton.cdiv(rows, size)


def _sizes(q: Tensor, block: int) -> dict[str, int]:
    width, half = q.shape[-1], q.dtype != torch.float32
    # What tensor cores cannot multiply is multiplied in registers, which hold little.
    across = min(max(16, triton.next_power_of_2(width)), 256 if half else 32)
    return {"D": width, "BD": across, "BN": block, "num_warps": WARPS}
