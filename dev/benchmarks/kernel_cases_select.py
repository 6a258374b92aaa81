"""Cases of `dev.benchmarks.kernels`: greedy selection."""

from collections.abc import Callable

import torch

from dev.benchmarks.kernel_case import KernelCase
from vlmcompress.ops.coverage import dpp_map, facility_location
from vlmcompress.ops.select import farthest_point, max_sum
from vlmcompress.ops.similarity import cosines


def _randn(*shape: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)


def _product(tokens: int, width: int) -> tuple[int, int]:
    """Bytes and FLOPs of all cosines: features read, a matrix written, half of it multiplied."""
    return 2 * tokens * width + 4 * tokens**2, tokens * (tokens + 1) * width


def farthest(batch: int, tokens: int, kept: int, width: int) -> KernelCase:
    """Beside the product, a row of the matrix a pick and all of it once for the first."""

    def prepare(device: torch.device) -> Callable[[], object]:
        images = _randn(batch, tokens, width, device=device)
        return lambda: farthest_point(images, kept)

    moved, work = _product(tokens, width)
    moved += 4 * tokens * (tokens + kept)
    shape = f"B={batch} N={tokens} K={kept} D={width} bf16"
    return KernelCase("farthest_point", shape, prepare, batch * moved, batch * work)


def summed(tokens: int, kept: int, width: int) -> KernelCase:
    """Beside the product, a row of the matrix a pick."""

    def prepare(device: torch.device) -> Callable[[], object]:
        rows = _randn(tokens, width, device=device)
        return lambda: max_sum(rows, kept, 0)

    moved, work = _product(tokens, width)
    moved += 4 * tokens * kept
    return KernelCase("max_sum", f"N={tokens} K={kept} D={width} bf16", prepare, moved, work)


def probable(tokens: int, kept: int, width: int) -> KernelCase:
    """Beside the product, a row of the matrix and all Cholesky rows before it a pick."""

    def prepare(device: torch.device) -> Callable[[], object]:
        rows = _randn(tokens, width, device=device)
        return lambda: dpp_map(rows, kept)

    moved, work = _product(tokens, width)
    moved += 4 * tokens * kept * (kept + 1) // 2
    work += tokens * kept * (kept - 1)
    return KernelCase("dpp_map", f"N={tokens} K={kept} D={width} bf16", prepare, moved, work)


def covering(tokens: int, kept: int, width: int) -> KernelCase:
    """The matrix is given: read once for the first gains, then at least one column a pick."""

    def prepare(device: torch.device) -> Callable[[], object]:
        rows = _randn(tokens, width, device=device)
        similarity = cosines(rows, rows)
        return lambda: facility_location(similarity, kept)

    moved = 4 * tokens * (tokens + kept)
    shape = f"R=N={tokens} K={kept} fp32"
    return KernelCase("facility_location", shape, prepare, moved, 2 * tokens * (tokens + kept))


CASES = [
    farthest(1, 576, 64, 4096),
    farthest(8, 576, 64, 4096),
    farthest(1, 2880, 320, 4096),
    farthest(1, 16384, 1024, 3584),
    summed(576, 192, 4096),
    summed(2880, 320, 4096),
    probable(576, 64, 4096),
    probable(2880, 320, 4096),
    covering(576, 64, 4096),
    covering(2880, 320, 4096),
]
