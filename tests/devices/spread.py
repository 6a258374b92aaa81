"""accelerate's hooks as `dispatch_model` attaches them, on weights that are where they belong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn


def spread(gpu: Any, model: nn.Module, places: Mapping[str, str], rest: str = "cuda:0") -> None:
    """Put modules on devices by name, the others on `rest`."""
    gpu.put(model, rest)
    devices = {}
    for path, device in places.items():
        module = model.get_submodule(path)
        gpu.put(module, device)
        devices[module] = device

    def hook(module: nn.Module, device: str, top: bool) -> None:
        device = devices.get(module, device)
        for child in module.children():
            hook(child, device, False)
        placed = AlignDevicesHook(
            torch.device(device), io_same_device=top, skip_keys=["past_key_values", "cache"]
        )
        add_hook_to_module(module, placed, append=True)

    # Weights are in place: accelerate would move them, and not know how.
    with mock.patch.object(AlignDevicesHook, "init_hook", lambda self, module: module):
        hook(model, rest, True)
