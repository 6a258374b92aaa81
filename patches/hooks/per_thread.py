"""State of hooks that every thread has of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, NoReturn, TypeVar

from vlmcompress.errors import UnsupportedCallError

Value = TypeVar("Value")


class PerThread(threading.local):
    """State that every thread has of its own. The copy of a model starts with none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        return type(self)()

    def __reduce__(self) -> NoReturn:
        raise UnsupportedCallError(
            "a compressed model cannot be pickled: call .remove() first, or use save_pretrained()"
        )


class During(PerThread, Generic[Value]):
    """What the hooks act on while a call of their thread runs; at other times they do nothing."""

    value: Value | None = None

    @contextmanager
    def holding(self, value: Value | None) -> Iterator[None]:
        """The hooks act on `value`, or on nothing, until the block ends, also by an error."""
        self.value = value
        try:
            yield
        finally:
            self.value = None
