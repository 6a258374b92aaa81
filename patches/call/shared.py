"""What all threads that use a compressed model share: the last trace, and who is inside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmcompress.patches.sequence.call_trace import Trace

_AGAIN = 1.0
"""Seconds after which who waits looks again: an interrupt can swallow the word that it is time."""


class Shared:
    """The last trace that any thread began, and a door that can be shut.

    A call goes in by `enter`. While hooks are put on or taken off, the door is shut: who is inside
    comes out in his own time, who arrives waits until it is done.
    """

    def __init__(self) -> None:
        self.trace = Trace()
        self.open = False
        """Whether the hooks are on."""
        self.held = False
        """Whether a `with` block will take them off."""
        self.earlier: set[int] = set()
        """Threads that were inside a call of the model when the hooks were put on."""
        self.only: int | None = None
        """The thread whose calls alone the hooks are for; None where they are for all."""
        self.hooking = threading.Lock()
        """Held to hook something more while calls run."""
        # Interrupts come between steps of Python, not inside those of a plain lock.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside: set[int] = set()
        self._shutting: list[int] = []
        """Threads that want it shut; the first has the door, the others wait for it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        made = Shared()
        made.open = self.open
        return made

    @property
    def for_others(self) -> bool:
        """Whether the hooks are for another thread than this one."""
        return self.only is not None and self.only != threading.get_ident()

    def enter(self) -> bool:
        """Count this thread, which waits while another has the door shut; False if not open."""
        own = threading.get_ident()
        with self._lock:
            while any(thread != own for thread in self._shutting):
                self._changed.wait(_AGAIN)
            if self.open:
                self._inside.add(own)
            return self.open

    def leave(self) -> None:
        """Count this thread no longer; harmless when it is not counted."""
        with self._lock:
            self._inside.discard(threading.get_ident())
            if self._shutting:
                self._changed.notify_all()

    def forget_earlier(self) -> None:
        """The calls that this thread was inside have ended."""
        self.earlier.discard(threading.get_ident())

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Keep all other threads outside during the block.

        Who is inside and wants it shut as well is not waited for: he waits here.
        """
        own = threading.get_ident()
        try:
            with self._lock:
                self._shutting.append(own)
                self._changed.notify_all()
                while self._shutting[0] != own or not self._inside <= set(self._shutting):
                    self._changed.wait(_AGAIN)
            yield
        finally:
            with self._lock:
                if own in self._shutting:
                    self._shutting.remove(own)
                self._changed.notify_all()
