"""Numbers as reports, tables and pictures show them."""

from __future__ import annotations


def mean_text(value: float) -> str:
    """A mean number of tokens: 58.33, 36, 11520; never 1.152e+04."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
