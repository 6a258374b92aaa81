"""The attention layers of a vision tower."""

from __future__ import annotations

from typing import Any

from torch import nn

_PROJECTIONS = ({"q_proj", "k_proj"}, {"qkv"}, {"q", "k", "v"})
"""What attention makes queries and keys with."""


def attention_layers(tower: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Each layer of the encoder with its attention module, in order.

    They are found by their projections: the path to them changed between versions.
    """
    found = []
    for name, module in tower.named_modules():
        parts = {part for part, _ in module.named_children()}
        if any(names <= parts for names in _PROJECTIONS):
            found.append((tower.get_submodule(name.rpartition(".")[0]), module))
    return found


def width(tower: nn.Module) -> int:
    """Of the hidden states of a tower."""
    return int(attention_layers(tower)[0][1].embed_dim)
