"""Trying what may be refused: with one line, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vlmcompress.errors import VLMCompressError

T = TypeVar("T")


def tried(make: Callable[[], T]) -> T | None:
    """What it gives; None where it is refused with one line of our own."""
    try:
        return make()
    except VLMCompressError as error:
        message = str(error)
    assert message
    assert len(message.splitlines()) == 1
    return None
