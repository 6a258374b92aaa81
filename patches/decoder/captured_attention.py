"""Queries and keys as a layer itself made them, whatever its parts are called.

For layers whose attention cannot be computed by the usual names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.hooks.arguments import CACHE_NAMES
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.watched_attention import Watched, watch
from vlmcompress.patches.sequence.attended import Attended

_NAMES = ("self_attn", "attn", "attention", "mixer")
"""What layers call their attention."""
_OWN = ("attention_mask", "dropout")
"""Arguments that `Attended` holds apart, or does without."""


class _Rehearsed(Exception):
    """Ends a layer that runs only to see what it would attend with."""

    def __init__(self, attended: Attended) -> None:
        self.attended = attended


def capture(attached: Attachments, layers: Iterable[nn.Module], now: CallState) -> None:
    """Have all layers that attend keep what they attend with, where a cut ranks in them, until
    `attached` is removed."""
    for number, layer in enumerate(layers):
        module: Any = next((found for n in _NAMES if (found := getattr(layer, n, None))), None)
        if module is not None and hasattr(module, "config"):
            watch(attached, module, functools.partial(_keep, number, module, now))


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


def _keep(number: int, module: nn.Module, now: CallState, call: Watched) -> None:
    stages = now.stages
    if now.rehearsing:
        raise _Rehearsed(_attended(module, call))
    if stages is not None and stages.cuts and stages.earlier.wants(number):
        stages.earlier.attended[number] = _attended(module, call)


def _attended(module: nn.Module, call: Watched) -> Attended:
    options = {k: v for k, v in call.options.items() if k not in _OWN}
    options["scaling"] = call.scaling
    prepared = call.mask is not None and call.mask.dim() == 4
    return Attended(module, call.query, call.key, call.mask if prepared else None, options)
