"""Queries and keys of a decoder layer, by the usual names of its parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def unrotated_heads(layer: Any, name: str, hidden: Tensor) -> Tensor:
    """Queries or keys before rotary embedding, with the layer's own norms and projection.

    Args:
        layer: whose parts have the usual names.
        name: "q" or "k".
        hidden: [B, R, D] what enters the layer.

    Returns:
        [B, heads, R, hd].
    """
    attention = layer.self_attn
    flat = getattr(attention, f"{name}_proj")(layer.input_layernorm(hidden))
    heads: Tensor = flat.view(*flat.shape[:2], -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)
