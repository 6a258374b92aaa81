"""Questions to the device that can wait, and are then asked all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.host_copies import on_cpu

Due = Callable[[], VLMCompressError]


class Checks:
    """Answers that the device still owes.

    Until then whatever they are about must do no harm where the answer will be no.
    """

    def __init__(self) -> None:
        self._good: list[Tensor] = []
        self._errors: list[Due] = []

    def expect(self, good: Tensor, error: Due) -> None:
        """`error()` is due unless `good` [] bool turns out to be true."""
        self._good.append(good)
        self._errors.append(error)

    def settle(self) -> None:
        """Wait for the answers.

        Raises:
            VLMCompressError: the first that is due.
        """
        self.read([])

    def read(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values on the CPU, for the same wait as the answers.

        Raises:
            VLMCompressError: the first that is due.
        """
        good, errors, self._good, self._errors = self._good, self._errors, [], []
        found = on_cpu([*good, *values])
        for answer, error in zip(found, errors, strict=False):
            if not bool(answer):
                raise error()
        return found[len(good) :]


_collecting: ContextVar[Checks | None] = ContextVar("collecting", default=None)


@contextmanager
def collected(checks: Checks) -> Iterator[None]:
    """Let `expect` leave its questions to `checks` during the block, in this thread.

    They are asked before the block lets out another mistake, which may be due to theirs.
    """
    token = _collecting.set(checks)
    try:
        yield
    except Exception:
        checks.settle()
        raise
    finally:
        _collecting.reset(token)


def expect(good: Tensor, error: Due) -> None:
    """Raise `error()` unless `good` [] bool is true: now, or later where `collected` says so."""
    checks = _collecting.get()
    if checks is not None:
        checks.expect(good, error)
    elif not bool(good):
        raise error()
