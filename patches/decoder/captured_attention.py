"""Queries and keys as a layer itself made them, whatever its parts are called.

For layers whose attention cannot be computed by the usual names. The attention module of each layer
is given a copy of its configuration that names `NAME`, which is known to transformers'
`AttentionInterface`; that keeps what it is shown and calls what the model's own configuration
names, so masks and results stay what they were.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.hooks.arguments import CACHE_NAMES
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.attended import EAGER, Attended

NAME = "vlmcompress_captured"
_CAPTURE = "_vlmcompress_capture"
_NAMES = ("self_attn", "attn", "attention", "mixer")
"""What layers call their attention."""


class _Rehearsed(Exception):
    """Ends a layer that runs only to see what it would attend with."""

    def __init__(self, attended: Attended) -> None:
        self.attended = attended


@dataclass(eq=False)
class Capture:
    """Keeps what one layer attends with, where a cut ranks in it."""

    number: int
    config: Any
    """The layer's own, whose attention implementation users may change at any time."""
    now: CallState

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Attention as the configuration says."""
        stages = self.now.stages
        if self.now.rehearsing:
            raise _Rehearsed(_attended(module, query, key, *args, **kwargs))
        if stages is not None and stages.cuts and stages.earlier.wants(self.number):
            stages.earlier.attended[self.number] = _attended(module, query, key, *args, **kwargs)
        name = self.config._attn_implementation
        if name == "eager":
            attend = vars(sys.modules[type(module).__module__])[EAGER]
        else:
            attend = ALL_ATTENTION_FUNCTIONS[name]
        return attend(module, query, key, *args, **kwargs)


def capture(attached: Attachments, layers: Iterable[nn.Module], now: CallState) -> None:
    """Have all layers that attend keep what they attend with, until `attached` is removed."""
    AttentionInterface.register(NAME, _captured)
    for number, layer in enumerate(layers):
        module: Any = next((found for n in _NAMES if (found := getattr(layer, n, None))), None)
        if module is None or not hasattr(module, "config"):
            continue
        own = copy.copy(module.config)
        own._attn_implementation_internal = NAME
        attached.set(module, _CAPTURE, Capture(number, module.config, now))
        attached.replace(module, "config", own)


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


def _attended(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> Attended:
    if options.get("scaling") is None:
        options["scaling"] = getattr(module, "scaling", query.shape[-1] ** -0.5)
    prepared = attention_mask is not None and attention_mask.dim() == 4
    return Attended(module, query, key, attention_mask if prepared else None, options)


def _captured(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return vars(module)[_CAPTURE](module, *args, **kwargs)
