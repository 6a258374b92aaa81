"""Cases of `dev.benchmarks.kernels`: attention rows and attention received."""

from collections.abc import Callable, Sequence

import torch

from dev.benchmarks.kernel_case import KernelCase
from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows


def _pair(
    q: Sequence[int], k: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    made = (torch.randn(*x, generator=generator, device=device) for x in (q, k))
    first, second = (x.to(torch.bfloat16) for x in made)
    return first, second


def rows(
    heads: int, shared: int, count: int, keys: int, width: int, *, mean: bool = False
) -> KernelCase:
    """Queries of a decoder layer (for a mean over heads: the CLS of a vision tower)."""

    def prepare(device: torch.device) -> Callable[[], object]:
        q, k = _pair((heads, count, width), (shared, keys, width), device)
        return lambda: attention_rows(q, k, width**-0.5, mean=mean)

    moved = 2 * width * (heads * count + shared * keys) + 4 * count * keys * (1 if mean else heads)
    shape = f"H={heads}/{shared} R={count} N={keys} d={width}{' mean' if mean else ''} bf16"
    return KernelCase("attention_rows", shape, prepare, moved, 2 * heads * count * keys * width)


def received(batch: int, heads: int, tokens: int, width: int) -> KernelCase:
    """A layer of CLIP or SigLIP."""

    def prepare(device: torch.device) -> Callable[[], object]:
        shape = (batch, tokens, heads, width)
        q, k = (x.transpose(1, 2) for x in _pair(shape, shape, device))
        return lambda: attention_received(q, k, width**-0.5)

    moved = batch * (4 * heads * tokens * width + 4 * tokens)
    work = 2 * batch * heads * tokens**2 * width
    shape = f"B={batch} H={heads} N={tokens} d={width} bf16"
    return KernelCase("attention_received", shape, prepare, moved, work)


def packed(heads: int, lengths: Sequence[int], width: int) -> KernelCase:
    """A layer of Qwen2.5-VL: windows, or the frames of a clip."""
    tokens = sum(lengths)

    def prepare(device: torch.device) -> Callable[[], object]:
        shape = (tokens, heads, width)
        q, k = (x.transpose(0, 1) for x in _pair(shape, shape, device))
        return lambda: attention_received_packed(q, k, width**-0.5, lengths)

    moved = 4 * heads * tokens * width + 4 * tokens
    work = 2 * heads * width * sum(length**2 for length in lengths)
    shape = f"H={heads} {len(lengths)}x{lengths[0]} d={width} bf16"
    return KernelCase("attention_received", shape, prepare, moved, work)


CASES = [
    rows(32, 32, 1, 640, 128),
    rows(32, 32, 1, 2940, 128),
    rows(32, 32, 60, 2940, 128),
    rows(28, 4, 1, 16448, 128),
    rows(28, 4, 60, 16448, 128),
    rows(16, 16, 1, 577, 64, mean=True),
    received(1, 16, 577, 64),
    received(5, 16, 577, 64),
    received(1, 16, 2928, 80),
    received(1, 16, 16384, 80),
    packed(16, [64] * 256, 80),
    packed(16, [2928] * 4, 80),
]
