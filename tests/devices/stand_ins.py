"""What stands in for parts of torch that no dispatch mode sees, while a device is pretended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only


class FakeEvent:
    """A CUDA event that takes the host's clock."""

    waited: Callable[[], None]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0.0

    @classmethod
    def of(cls, waited: Callable[[], None]) -> type[FakeEvent]:
        """A class whose `synchronize` tells of itself."""
        return type("Event", (cls,), {"waited": staticmethod(waited)})

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        self.waited()

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1000


class Seeds:
    """Of generators for a device: the dispatcher wraps a generator anew, but its seed stays."""

    def __init__(self) -> None:
        self.known: set[int] = set()

    def check(self, generator: Any, device: torch.device) -> None:
        """Raise what torch raises for a generator of another device."""
        if generator is None or device.type != "cuda":
            return
        if generator.initial_seed() not in self.known:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


def generator_class(original: Any, seeds: Seeds) -> Any:
    """For `torch.Generator`."""

    class Generator(original):
        def manual_seed(self, seed: int) -> Any:
            seeds.known.add(seed)
            super().manual_seed(seed)
            return self

    def generator(device: Any = "cpu") -> Any:
        return Generator() if torch.device(device).type == "cuda" else original()

    return generator


def tensor_constructor(original: Any, far: type) -> Any:
    """For `torch.tensor`, which reads tensors in lists."""

    def tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, list | tuple):
            data = tree_map_only(far, lambda x: x.item() if x.dim() == 0 else x.tolist(), data)
        return original(data, *args, **kwargs)

    return tensor
