"""Queries and keys as a layer itself made them, whatever its parts are called.

For layers whose attention cannot be computed by the usual names. The attention module of each layer
is given a copy of its configuration that names `NAME`, which is known to transformers'
`AttentionInterface`; that keeps what it is shown and calls what the model's own configuration
names, so masks and results stay what they were.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.stage_layout import Captured

NAME = "vlmcompress_captured"
_CAPTURE = "_vlmcompress_capture"
_NAMES = ("self_attn", "attn", "attention", "mixer")
"""What layers call their attention."""


@dataclass(eq=False)
class Capture:
    """Keeps what one layer attends with, where the next one drops tokens."""

    number: int
    config: Any
    """The layer's own, whose attention implementation users may change at any time."""
    now: CallState

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Attention as the configuration says."""
        stages = self.now.stages
        if stages is not None and self.number + 1 in stages.cuts:
            scaling = kwargs.get("scaling") or getattr(module, "scaling", None)
            mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            stages.captured = Captured(query, key, scaling or query.shape[-1] ** -0.5, mask)
        name = self.config._attn_implementation
        if name == "eager":
            attend = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
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


def _captured(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return vars(module)[_CAPTURE](module, *args, **kwargs)
