"""Amounts of memory as texts: "2GB", "500 MiB"."""

from __future__ import annotations

import math
import re

from vlmcompress.errors import BudgetError
from vlmcompress.files.untrusted import short

_UNITS = {"": 1, **{f"{p}B": 1000**n for n, p in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {f"{p}IB": 1024**n for n, p in enumerate(("", "K", "M", "G", "T")) if n}
_COUNT = re.compile(r"\d{1,15}")
_TEXT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?I?B)", re.IGNORECASE)


def bytes_of(given: object) -> int:
    """The bytes that `max_memory` means.

    Args:
        given: a count of bytes, also as a text, or a text with a unit: KB, MB, GB, TB (powers of
            1000), KiB, MiB, GiB, TiB (of 1024), B.

    Raises:
        BudgetError: it is neither, or less than one byte.
    """
    found, text = 0, given.strip() if isinstance(given, str) else ""
    if isinstance(given, int) and not isinstance(given, bool):
        found = given
    elif _COUNT.fullmatch(text):  # of a command line
        found = int(text)
    elif match := _TEXT.fullmatch(text):
        found = int(float(match[1]) * _UNITS.get(match[2].upper(), 0))
    if found < 1:
        raise BudgetError(
            f"max_memory={short(given)} is not possible: give bytes, or a text such as '2GB' or "
            "'500MiB'"
        )
    return found


def in_words(count: int) -> str:
    """`1.5 GB`: three digits, rounded up, so that it is enough where it is a need."""
    for name, size in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if count >= size:
            whole = len(str(count // size))
            places = max(0, 3 - whole)
            return f"{math.ceil(count / size * 10**places) / 10**places:g} {name}"
    return f"{count} B"
