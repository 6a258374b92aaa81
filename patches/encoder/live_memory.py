"""How many bytes of tensors a piece of code holds at once, measured on any device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Counts the storages that operators of this thread make inside the block.

    Tensors that were there before (weights, inputs) and what kernels use for themselves do not
    count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Bytes that are held."""
        self.peak = 0
        """The most that were held at once."""
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        for value in tree_iter((args, kwargs)):
            self._note(value, made=False)
        output = func(*args, **(kwargs or {}))
        for value in tree_iter(output):
            self._note(value, made=True)
        return output

    def _note(self, value: Any, made: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes() if made else 0

        def forget(_: Any) -> None:
            self._known.pop(place, None)
            self.now -= size

        self._known[place] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
