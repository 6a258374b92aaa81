"""Queries and keys as a layer itself made them, whatever its parts are called.

For layers whose attention cannot be computed by the usual names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.hooks.arguments import CACHE_NAMES
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.attended import Attended
from vlmcompress.patches.sequence.watched_attention import attention_of, watch


class _Rehearsed(Exception):
    """Ends a layer that runs only to see what it would attend with."""

    def __init__(self, attended: Attended) -> None:
        self.attended = attended


def capture(attached: Attachments, layers: Iterable[nn.Module], now: CallState) -> None:
    """Have all layers that attend keep what they attend with, until `attached` is removed."""
    for number, layer in enumerate(layers):
        module = attention_of(layer)
        if module is not None and hasattr(module, "config"):
            watch(attached, module, functools.partial(_keep, number, now))


def _keep(number: int, now: CallState, seen: Attended) -> None:
    """Keep it where a cut ranks in the layer."""
    stages = now.stages
    if seen.mask is not None and seen.mask.dim() != 4:
        seen = replace(seen, mask=None)
    if now.rehearsing:
        raise _Rehearsed(seen)
    if stages is not None and stages.cuts and stages.earlier.wants(number):
        stages.earlier.attended[number] = seen


def rehearse(
    layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], now: CallState
) -> Attended | None:
    """What a layer would attend with: it runs up to there, and leaves the cache alone.

    Args:
        layer: that `capture` watches.
        hidden: [B, Q, D] its input.
        arguments: the others by name.
        now: of the thread.

    Returns:
        None where it attends to nothing.
    """
    arguments = {k: None if k in CACHE_NAMES else v for k, v in arguments.items()}
    arguments |= {"use_cache": False} if "use_cache" in arguments else {}
    now.rehearsing = True
    try:
        layer.forward(hidden, **arguments)
    except _Rehearsed as seen:
        return seen.attended
    finally:
        now.rehearsing = False
    return None
