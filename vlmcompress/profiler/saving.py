"""What a method saves of what can be saved."""

from __future__ import annotations

import math

from vlmcompress.profiler.run import Tokens


def achieved(full: float, method: float, nothing: float) -> float | None:
    """Share of what can be saved that is saved; None where nothing can."""
    return (full - method) / (full - nothing) if full > nothing else None


def break_even(tokens: Tokens, selection: float, slope: float, share: bool) -> int | None:
    """Visual tokens of an image from which on a method saves time.

    n tokens of which k are kept save slope * (n - k). The selection, taken to cost what it did
    here, is paid back from n = k + selection / slope on where k is fixed, and from
    n = selection / slope / (1 - k/n) on where the share k/n is. It is a straight line through two
    measured points, while attention makes a token of a longer prompt cost more.

    Args:
        tokens: of the call.
        selection: milliseconds of it.
        slope: milliseconds up to the first output token that a visual token costs.
        share: whether the method keeps a share.

    Returns:
        None where a token costs nothing or all are kept.
    """
    if slope <= 0 or tokens.mean >= tokens.before:
        return None
    paid = selection / slope
    need = paid / (1 - tokens.mean / tokens.before) if share else tokens.mean + paid
    return math.floor(need / tokens.images) + 1
