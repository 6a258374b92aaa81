"""What a token costs in the matrices of a module, and in a layer of a decoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmcompress.flops.exact import LayerShape
from vlmcompress.flops.paper_conventions import experts_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.sequence.attention_masks import CHUNKED, SLIDING, has_keys
from vlmcompress.patches.sequence.watched_attention import attention_of

_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
"""What configurations call the experts that a token meets."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BLOCK = 64
"""Tokens that the gated delta rule works on at once."""


def macs(module: nn.Module, experts: int = 1, active: int = 1) -> int:
    """Multiply-adds of one token with all matrices inside, `active` of so many `experts`."""
    return sum(_own(part, experts, active) for part in module.modules())


def _own(part: nn.Module, experts: int, active: int) -> int:
    """Without what is inside its parts."""
    known: Any = part
    if hasattr(part, "in_features"):  # quantized weights have other shapes
        return int(known.in_features * known.out_features)
    if isinstance(part, _CONVOLUTIONS):
        return part.weight.numel()
    if isinstance(part, nn.Embedding):
        return 0
    # Those that transformers dispatches meet the tokens they are for; others meet all of them.
    met = active if hasattr(part, "is_transposed") else experts
    total = 0
    for name, weight in part.named_parameters(recurse=False):
        if "embedding" in name:  # looked up, or added to tokens
            continue
        if weight.dim() == 2:
            total += weight.numel()
        elif weight.dim() == 3 and experts > 1:
            total += weight.numel() // experts * met
    return total


def width(attention: Any) -> int:
    """All query heads of an attention module of a vision tower together."""
    if hasattr(attention, "qkv"):
        return int(attention.qkv.out_features) // 3
    made = attention.q_proj if hasattr(attention, "q_proj") else attention.q
    linear = next(part for part in made.modules() if hasattr(part, "out_features"))
    return int(linear.out_features)


def decoder_layers(parts: ModelParts) -> tuple[LayerShape, ...]:
    """All layers of a decoder."""
    config: Any = parts.lm.config
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [SLIDING if getattr(config, "sliding_window", None) else ""] * len(parts.layers)
    pairs = zip(parts.layers, kinds, strict=False)
    return tuple(_layer(layer, kind, config) for layer, kind in pairs)


def _layer(layer: nn.Module, kind: str, config: Any) -> LayerShape:
    experts = experts_of(config)
    active = next((k for name in _ACTIVE if (k := getattr(config, name, None))), 1)
    weights = macs(layer, experts, active if experts > 1 else 1)
    if not has_keys(kind):
        return LayerShape(weights, 0, block=_block(layer))
    names = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}
    window = getattr(config, names[kind], None) if kind in names else None
    heads, compared, cached = _heads(attention_of(layer), config)
    return LayerShape(weights, heads * compared / 2, cached, window, kind == CHUNKED)


def _heads(attention: Any, config: Any) -> tuple[int, int, int]:
    """Query heads, numbers of a query and a value of each, and what one token leaves in a cache."""
    heads = int(config.num_attention_heads)
    if hasattr(attention, "qk_head_dim"):  # latent attention has as many keys as queries
        compared = int(attention.qk_head_dim + attention.v_head_dim)
        return heads, compared, heads * compared
    size = getattr(attention, "head_dim", None) or config.head_dim or config.hidden_size // heads
    if getattr(attention, "is_kv_shared_layer", False):
        return heads, 2 * size, 0
    made = getattr(attention, "k_proj", None)
    keys = (config.num_key_value_heads or heads) * size if made is None else made.out_features
    return heads, 2 * size, 2 * int(keys)


def _block(layer: nn.Module) -> tuple[int, int]:
    """Tokens, and multiply-adds, of a block of the gated delta rule; nothing without one."""
    for part in layer.modules():
        known: Any = part
        if hasattr(part, "head_k_dim") and hasattr(part, "num_v_heads"):
            k, v = known.head_k_dim, known.head_v_dim
            inside = _BLOCK**2 * (2 * k + v)  # keys with keys, queries with keys, those with values
            state = 3 * _BLOCK * k * v  # read by keys, read by queries, written
            return _BLOCK, int(known.num_v_heads) * (inside + state)
    return 1, 0
