"""Checks of arguments that many functions take: counts and texts."""

from __future__ import annotations

import operator

from vlmcompress.errors import VLMCompressError
from vlmcompress.files.untrusted import check_text, short


def check_count(name: str, value: object) -> None:
    """Raise a VLMCompressError unless `value` is a whole number of 1 or more."""
    try:
        fits = not isinstance(value, bool) and operator.index(value) >= 1  # type: ignore[arg-type]
    except TypeError:
        fits = False
    if not fits:
        raise VLMCompressError(f"{name} must be a whole number, 1 or more, got {short(value)}")


def check_words(name: str, value: object) -> None:
    """Raise a VLMCompressError unless `value` is a text that says something and can be written."""
    if not isinstance(value, str) or not value.strip():
        raise VLMCompressError(f"{name} must be a text, got {short(value)}")
    check_text(value)
