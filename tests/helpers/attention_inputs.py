"""Queries and keys, and how much memory attention over them takes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SCALING = 0.5


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Queries and keys far enough apart that attention is not uniform."""
    g = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(*shape, generator=g) * 2).to(dtype) for _ in range(2))


class Largest(TorchDispatchMode):
    """Remembers the number of values of the largest float32 tensor that was made."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.values = max(self.values, out.numel())
        return out
