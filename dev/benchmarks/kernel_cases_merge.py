"""Cases of `dev.benchmarks.kernels`: gathering, merging and pooling."""

from collections.abc import Callable

import torch

from dev.benchmarks.kernel_case import KernelCase
from vlmcompress.ops.gather import take_all
from vlmcompress.ops.groups import Groups, segment_sum, segments
from vlmcompress.ops.merge import best_match
from vlmcompress.ops.pool import geometry, strided, window
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import Grid

HEAD = 128


def _randn(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def taking(batch: int, length: int, width: int, kept: int) -> KernelCase:
    """Hidden states in bfloat16, cos, sin and positions of a decoder."""

    def prepare(device: torch.device) -> Callable[[], object]:
        hidden = _randn(batch, length, width, device=device, dtype=torch.bfloat16)
        cos, sin = (_randn(1, length, HEAD, device=device, dtype=torch.bfloat16) for _ in "cs")
        positions = torch.arange(length, device=device)[None]
        order = _randn(batch, length, device=device).argsort(1)
        index = order[:, :kept].sort().values
        return lambda: take_all([hidden, cos, sin, positions], index)

    rows = batch * kept
    moved = rows * (2 * (2 * width + 2 * 2 * HEAD + 8) + 8)
    return KernelCase("take", f"B={batch} L={length} D={width} K={kept} bf16", prepare, moved, 0)


def matching(batch: int, tokens: int, width: int) -> KernelCase:
    """Even tokens beside odd ones, as ToMe does it."""
    rows, columns = tokens - tokens // 2, tokens // 2

    def prepare(device: torch.device) -> Callable[[], object]:
        unit = unit_rows(_randn(batch, tokens, width, device=device))
        return lambda: best_match(unit[:, ::2], unit[:, 1::2])

    moved = batch * (4 * tokens * width + 12 * rows)
    work = 2 * batch * rows * columns * width
    return KernelCase("best_match", f"B={batch} N={tokens} D={width} fp32", prepare, moved, work)


def summing(batch: int, tokens: int, width: int, kept: int) -> KernelCase:
    """Size-weighted means of groups, in bfloat16."""

    def prepare(device: torch.device) -> Callable[[], object]:
        values = _randn(batch * tokens, width, device=device, dtype=torch.bfloat16)
        leader = torch.arange(tokens, device=device).remainder(kept).repeat(batch, 1)
        groups = Groups.of(leader, count=kept)
        tiles = torch.arange(batch, device=device)[:, None] * kept
        members, offsets = segments((groups.slot + tiles).flatten(), batch * kept)
        weights = torch.ones(batch * tokens, device=device)
        return lambda: segment_sum(values, members, offsets, weights)

    moved = batch * (tokens * (2 * width + 12) + kept * (4 * width + 8))
    shape = f"B={batch} N={tokens} K={kept} D={width} bf16"
    return KernelCase("segment_sum", shape, prepare, moved, 2 * batch * tokens * width)


def pooling(grid: Grid, shape: tuple[int, int], width: int, scored: bool) -> KernelCase:
    """Windows of every frame in bfloat16, with weights by scores or without."""
    sizes = (grid.t, grid.h, grid.w)
    axes = [geometry(n, output=o) for n, o in zip(sizes, (grid.t, *shape), strict=True)]
    members = 1
    for kernel, _, output in axes:
        members *= kernel * output
    kept = grid.t * shape[0] * shape[1]

    def prepare(device: torch.device) -> Callable[[], object]:
        features = _randn(len(grid), width, device=device, dtype=torch.bfloat16)
        scores = _randn(len(grid), device=device)
        if scored:
            return lambda: strided(features, grid, axes, scores)
        return lambda: window(features, grid, shape)

    moved = len(grid) * (2 * width + 4 * scored) + kept * (2 * width + 8) + 8 * members
    name = f"{grid} to {shape[0]}x{shape[1]} D={width} bf16{' scored' if scored else ''}"
    return KernelCase("pool", name, prepare, moved, 2 * members * width)


CASES = [
    taking(1, 640, 4096, 128),
    taking(1, 2928, 4096, 112),
    taking(8, 2928, 4096, 112),
    taking(1, 16448, 3584, 1088),
    matching(1, 577, 64),
    matching(5, 577, 64),
    matching(5, 577, 1024),
    matching(1, 2880, 4096),
    matching(1, 16384, 80),
    summing(5, 577, 1024, 400),
    summing(1, 2880, 4096, 1440),
    summing(1, 16384, 3584, 1024),
    pooling(Grid(1, 24, 24), (12, 12), 4096, False),
    pooling(Grid(1, 27, 27), (14, 14), 3584, True),
    pooling(Grid(64, 16, 16), (8, 8), 3584, False),
    pooling(Grid(64, 16, 16), (8, 8), 3584, True),
]
