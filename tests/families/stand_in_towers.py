"""What stands in for towers of timm, which is not installed: outputs have the same shapes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

CHANNELS_FIRST = {"gemma3n": True, "fast_vlm": True, "perception_lm": False}
"""Types whose tower is timm's -> the shape of its features; the others get a CLS token."""


class StandIn(nn.Module):
    """Patches of 8x8, by themselves."""

    def __init__(self, config: Any, width: int, channels_first: bool) -> None:
        super().__init__()
        self.config, self.channels_first = config, channels_first
        self.conv = nn.Conv2d(3, width, 8, 8)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv.weight.dtype

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        found = torch.tanh(self.conv(pixel_values))
        if not self.channels_first:
            found = found.flatten(2).transpose(1, 2)
            found = torch.cat([found[:, :1], found], 1)
        return BaseModelOutputWithPooling(last_hidden_state=found)


@contextmanager
def stand_ins(model_type: str, cls: type[nn.Module], config: Any) -> Iterator[None]:
    """While a model of this type is built."""
    if model_type not in CHANNELS_FIRST:
        yield
        return
    module: Any = sys.modules[cls.__module__]
    real, channels_first = module.AutoModel, CHANNELS_FIRST[model_type]

    class Instead:
        @staticmethod
        def from_config(given: Any, *args: Any, **kwargs: Any) -> Any:
            if given is config.vision_config:
                arguments = getattr(given, "model_args", None) or {}
                width = arguments.get("embed_dim") or given.hidden_size
                return StandIn(given, width, channels_first)
            if given is getattr(config, "audio_config", None):
                return nn.Identity()
            return real.from_config(given, *args, **kwargs)

    module.AutoModel = Instead
    try:
        yield
    finally:
        module.AutoModel = real
