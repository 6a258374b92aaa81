"""Questions to the device that can wait, and are then asked all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError

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
        good, errors, self._good, self._errors = self._good, self._errors, [], []
        if not good:
            return
        answers: dict[int, bool] = {}
        for device in {one.device for one in good}:  # one wait for each
            mine = [number for number, one in enumerate(good) if one.device == device]
            found = torch.stack([good[number] for number in mine]).tolist()
            answers.update(zip(mine, found, strict=True))
        for number, error in enumerate(errors):
            if not answers[number]:
                raise error()


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
