"""The attention layers of a vision tower."""

from __future__ import annotations

from typing import Any

from torch import nn


def attention_layers(tower: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Each layer of the encoder with its attention module, in order.

    They are found by their projections: the path to them changed between versions.
    """
    found = []
    for name, module in tower.named_modules():
        split = hasattr(module, "q_proj") and hasattr(module, "k_proj")
        if split or hasattr(module, "qkv"):
            found.append((tower.get_submodule(name.rpartition(".")[0]), module))
    return found


def width(tower: nn.Module) -> int:
    """Of the hidden states of a tower."""
    return int(attention_layers(tower)[0][1].embed_dim)
