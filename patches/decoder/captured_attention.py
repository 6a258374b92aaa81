"""Queries and keys as a layer itself made them, whatever its parts are called.

For layers whose attention cannot be computed by the usual names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import nn

from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.watched_attention import Attended, attention_of, watch
from vlmcompress.patches.sequence.stage_layout import Captured


def capture(attached: Attachments, layers: Iterable[nn.Module], now: CallState) -> None:
    """Have all layers that attend keep what they attend with, until `attached` is removed."""
    for number, layer in enumerate(layers):
        module = attention_of(layer)
        if module is not None and hasattr(module, "config"):
            watch(attached, module, functools.partial(_keep, number, now))


def _keep(number: int, now: CallState, seen: Attended) -> None:
    """Keep it where the next layer drops tokens."""
    stages = now.stages
    if stages is not None and number + 1 in stages.cuts:
        stages.captured = Captured(seen.query, seen.key, seen.scaling, seen.mask)
