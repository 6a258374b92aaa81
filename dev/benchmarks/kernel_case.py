"""One kernel at one shape, as the benchmark of kernels takes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KernelCase:
    """One op at one shape."""

    op: str
    """As `backend.use_triton` knows it."""
    shape: str
    """For people, such as "N=2880 k=320 D=4096 bf16"."""
    prepare: Callable[[torch.device], Callable[[], object]]
    """Makes the inputs on a device and gives what is timed: the public op, which dispatches."""
    bytes: int
    """Bytes that have to be read and written at least."""
    flops: int
    """FLOPs that have to be done at least."""
