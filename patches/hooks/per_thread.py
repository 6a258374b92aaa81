"""State of hooks that every thread has of its own."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from vlmcompress.errors import UnsupportedCallError


class PerThread(threading.local):
    """State that every thread has of its own. The copy of a model starts with none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        return type(self)()

    def __reduce__(self) -> NoReturn:
        raise UnsupportedCallError(
            "a compressed model cannot be pickled: call .remove() first, or use save_pretrained()"
        )
