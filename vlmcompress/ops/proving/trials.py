"""Inputs on which the kernel of an op can be judged.

Picks must be equal to the last one, so no trial of a pick may depend on how a sum was rounded:
cosines of rows of signs and sums of small fractions are exact in whatever order a card adds. They
tie often, and ties go to the lowest index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.ops.coverage import dpp_map, facility_location
from vlmcompress.ops.gather import take_all
from vlmcompress.ops.groups import segment_sum
from vlmcompress.ops.merge import best_match
from vlmcompress.ops.pool import geometry, strided, window
from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows
from vlmcompress.ops.select import farthest_point, max_sum
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import Grid

Result = Sequence[Tensor]
Run = Callable[[], Result]


class Draws:
    """Random tensors on a device, in the dtype of a trial, from a seed of their own."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device)
        self._generator.manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """In the dtype of the trial."""
        drawn = torch.randn(shape, generator=self._generator, device=self.device)
        return drawn.to(self.dtype)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 from `low` to below `high`."""
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)

    def signs(self, *shape: int) -> Tensor:
        """Rows [..., N, D] of 1 and -1 whose length is a power of two, one of them of zeros.

        Where D is no power of four, half of each row is 0: the first in one row and the last in
        the next.
        """
        *_, rows, width = shape
        made = 2 * self.whole(0, 2, *shape) - 1
        if math.isqrt(width) ** 2 != width:
            lower = torch.arange(width, device=self.device) < width // 2
            even = torch.arange(rows, device=self.device) % 2 == 0
            made = made * (lower == even[:, None])
        if rows > 4:
            made[..., rows // 2, :] = 0
        return made.to(self.dtype)


@dataclass(frozen=True)
class Trial:
    """How an op is tried."""

    prepare: Callable[..., Run]
    """Makes inputs (`Draws`, sizes by name) and gives the call of the public op."""
    usual: Sequence[Mapping[str, int]]
    """Sizes that `vlmcompress kernels --check` tries."""
    dtype: torch.dtype = torch.bfloat16
    """The usual one."""
    rtol: float = 0.0
    """Of results that are no picks."""
    atol: float = 0.0


def _farthest(draws: Draws, *, B: int, N: int, D: int, K: int) -> Run:
    images = draws.signs(B, N, D)
    return lambda: [farthest_point(images, K, order="picked")]


def _summed(draws: Draws, *, N: int, D: int, K: int) -> Run:
    rows = draws.signs(N, D)
    return lambda: [max_sum(rows, K, 0, order="picked")]


def _probable(draws: Draws, *, N: int, D: int, K: int) -> Run:
    """A few rows of quality, far apart in what they gain; the others repeat them and follow when
    nothing can be gained any more."""
    different = max(1, min(_DIFFERENT, N, D // 4))
    order = draws.whole(0, 2**30, N).argsort()
    rows = draws.normal(different, D)[order % different]
    quality = torch.where(order < different, 0.95 ** (order % different), 0.01)
    return lambda: [dpp_map(rows, K, quality, order="picked")]


_DIFFERENT = 24
"""More than the Cholesky rows that the kernel reads at once."""


def _covering(draws: Draws, *, R: int, N: int, K: int) -> Run:
    similar = draws.whole(-16, 17, R, N) / 16
    weights = 0.5 ** draws.whole(0, 3, N)
    return lambda: [facility_location(similar, K, weights, order="picked")]


def _rows(
    draws: Draws, *, B: int, H: int, S: int, R: int, N: int, d: int, mean: int, seen: int
) -> Run:
    q, k = draws.normal(B, max(H, S), R, d), draws.normal(B, S, N, d)
    mask = draws.whole(0, 4, R, N) > 0 if seen else None
    if mask is not None:
        mask[:, 0] = True
    return lambda: [attention_rows(q, k, d**-0.5, mask, mean=bool(mean))]


def _received(draws: Draws, *, H: int, S: int, N: int, d: int, valid: int) -> Run:
    q, k = draws.normal(H, S * N, d), draws.normal(H, S * N, d)
    if S > 1:
        return lambda: [attention_received_packed(q, k, d**-0.5, [N] * S)]
    open_ = draws.whole(0, 4, N) > 0 if valid else None
    if open_ is not None:
        open_[0] = True
    return lambda: [attention_received(q, k, d**-0.5, valid=open_)]


def _taking(draws: Draws, *, T: int, B: int, L: int, K: int, W: int) -> Run:
    width = max(1, W // draws.dtype.itemsize)
    tensors = [draws.normal(B, L, width), *(draws.normal(1, L, 16) for _ in range(T - 1))]
    index = draws.whole(0, L, B, K)
    return lambda: take_all(tensors, index)


def _matching(draws: Draws, *, B: int, R: int, C: int, D: int, weighted: int, closed: int) -> Run:
    rows, columns = (unit_rows(draws.signs(B, n, D)) for n in (R, C))
    shut = draws.whole(0, 4, B, C) == 0 if closed else None
    if shut is not None:
        shut[:, 0] = False
    if not weighted:
        return lambda: best_match(rows, columns, closed=shut)
    own, their = (1 - draws.whole(0, 512, B, n) / 1024 for n in (R, C))

    def weights() -> Result:
        """Of equal weights but for rounding either column will do: the weight there is judged."""
        weight, found = best_match(rows, columns, (own, their), 0.5, shut)
        there = columns.gather(1, found[..., None].expand(-1, -1, D))
        near = (((rows * there).sum(-1) + 1) / 2).clamp_min(0)
        open_ = torch.ones_like(found) if shut is None else (~shut).long().gather(1, found)
        return [weight, near.sqrt() * own * their.gather(1, found), open_]

    return weights


def _summing(draws: Draws, *, N: int, M: int, K: int, D: int, weighted: int) -> Run:
    values, members = draws.normal(N, D), draws.whole(0, N, M)
    offsets = torch.arange(K + 1, device=draws.device) * M // K
    weights = draws.normal(M).float() if weighted else None
    return lambda: [segment_sum(values, members, offsets, weights)]


def _pooling(draws: Draws, *, N: int, K: int, D: int, scored: int) -> Run:
    """Windows that overlap: one less along each axis than would divide it."""
    grid, made = _sides(N), _sides(min(N, K))
    features = draws.normal(N, D)
    a, b = (max(1, min(n, size) - 1) for n, size in ((made.h, grid.h), (made.w, grid.w)))
    if not scored:
        return lambda: [window(features, grid, (a, b)).features]
    axes = [geometry(n, output=o) for n, o in ((1, 1), (grid.h, a), (grid.w, b))]
    scores = draws.normal(N).float()
    return lambda: [strided(features, grid, axes, scores).features]


def _sides(count: int) -> Grid:
    """About square; `count` is a power of two."""
    high = 1 << (count.bit_length() - 1) // 2
    return Grid(1, high, count // high)


TRIALS: Mapping[str, Trial] = {
    "farthest_point": Trial(
        _farthest,
        [
            {"B": 1, "N": 576, "D": 4096, "K": 64},
            {"B": 8, "N": 576, "D": 4096, "K": 64},
            {"B": 1, "N": 2880, "D": 4096, "K": 320},
        ],
    ),
    "max_sum": Trial(_summed, [{"N": 576, "D": 4096, "K": 64}, {"N": 2880, "D": 4096, "K": 320}]),
    "dpp_map": Trial(_probable, [{"N": 576, "D": 4096, "K": 64}, {"N": 2880, "D": 4096, "K": 320}]),
    "facility_location": Trial(
        _covering,
        [{"R": 576, "N": 576, "K": 64}, {"R": 2880, "N": 2880, "K": 320}],
        torch.float32,
    ),
    "attention_rows": Trial(
        _rows,
        [
            {"B": 1, "H": 32, "S": 32, "R": 1, "N": 640, "d": 128, "mean": 0, "seen": 1},
            {"B": 1, "H": 28, "S": 4, "R": 60, "N": 2940, "d": 128, "mean": 0, "seen": 1},
            {"B": 1, "H": 16, "S": 16, "R": 1, "N": 577, "d": 64, "mean": 1, "seen": 0},
        ],
        rtol=1e-3,
        atol=1e-6,
    ),
    "attention_received": Trial(
        _received,
        [
            {"H": 16, "S": 1, "N": 577, "d": 64, "valid": 0},
            {"H": 16, "S": 64, "N": 64, "d": 80, "valid": 0},
            {"H": 16, "S": 1, "N": 2928, "d": 80, "valid": 0},
        ],
        rtol=1e-3,
        atol=1e-6,
    ),
    "take": Trial(
        _taking,
        [
            {"T": 4, "B": 1, "L": 640, "K": 128, "W": 8192},
            {"T": 4, "B": 8, "L": 2940, "K": 112, "W": 8192},
        ],
    ),
    "best_match": Trial(
        _matching,
        [
            {"B": 5, "R": 289, "C": 288, "D": 64, "weighted": 0, "closed": 0},
            {"B": 5, "R": 289, "C": 288, "D": 64, "weighted": 1, "closed": 0},
        ],
        torch.float32,
        rtol=1e-4,
        atol=1e-6,
    ),
    "segment_sum": Trial(
        _summing,
        [{"N": 2880, "M": 2880, "K": 1440, "D": 4096, "weighted": 1}],
        rtol=1e-4,
        atol=1e-4,
    ),
    "pool": Trial(
        _pooling,
        [
            {"N": 576, "K": 144, "D": 4096, "scored": 0},
            {"N": 729, "K": 196, "D": 3584, "scored": 1},
        ],
        rtol=1e-4,
        atol=1e-5,
    ),
}
