"""The sizes of a model that its cost depends on, read from its modules.

Modules rather than configurations: every family names its fields in its own way, while a matrix
costs one multiply-add per weight and token whatever it is called. Models on the meta device have
shapes, too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.flops.exact import LayerShape, ModelShape
from vlmcompress.flops.paper_conventions import experts_of, windows_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.tower_layers import attention_layers


def shape_of(model: nn.Module) -> ModelShape:
    """The sizes of a model of a supported family; it may be on the meta device.

    Raises:
        UnsupportedModelError: no family serves it, or its FLOPs are not known.
    """
    parts = ModelParts.of(model)
    if parts.family.no_costs is not None:
        raise UnsupportedModelError(
            f"the FLOPs of a {parts.family.name} model are not known, as {parts.family.no_costs}: "
            'give a budget of tokens, for example 64 or "25%"'
        )
    tower, projectors = parts.towers[0], parts.family.projectors(parts.base)
    layers, inside = attention_layers(tower), set(tower.modules())
    head = next((m for m in inside if _is_pooler(m)), None)
    others = [layer for layer, _ in layers] + [p for p in projectors if p in inside]
    others += [] if head is None else [head]
    any_model: Any = model
    return ModelShape(
        embedding=macs(tower) - sum(map(macs, others)),
        encoder=tuple(LayerShape(macs(layer), _width(attention)) for layer, attention in layers),
        projector=sum(map(macs, projectors)),
        decoder=_decoder(parts),
        lm_head=macs(any_model.get_output_embeddings()),
        pooler=(0, 0) if head is None else _pooler(head),
        value_bytes=any_model.dtype.itemsize,
    )


def _decoder(parts: ModelParts) -> tuple[LayerShape, ...]:
    config: Any = parts.lm.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * size * (config.num_key_value_heads or config.num_attention_heads)
    experts = experts_of(config)
    active = config.num_experts_per_tok if experts > 1 else 1
    return tuple(
        LayerShape(
            weights=macs(layer, experts, active),
            width=size * config.num_attention_heads,
            cached=cached,
            window=window,
        )
        for layer, window in zip(parts.layers, windows_of(config, len(parts.layers)), strict=True)
    )


def macs(module: nn.Module, experts: int = 1, active: int = 1) -> int:
    """Multiply-adds of one token with all matrices inside, `active` of so many `experts`."""
    total = 0
    for part in module.modules():
        known: Any = part
        if hasattr(part, "in_features"):  # quantized weights have other shapes
            total += known.in_features * known.out_features
        elif isinstance(part, nn.Conv2d | nn.Conv3d):
            total += part.weight.numel()
        elif not isinstance(part, nn.Embedding):
            for weight in part.parameters(recurse=False):
                if weight.dim() == 2:
                    total += weight.numel()
                elif weight.dim() == 3 and experts > 1:
                    total += weight.numel() // experts * active
    return total


def _width(attention: Any) -> int:
    """All query heads together."""
    if hasattr(attention, "qkv"):
        return int(attention.qkv.out_features) // 3
    return int(attention.q_proj.out_features)


def _is_pooler(module: nn.Module) -> bool:
    """Whether it is the attention pooling head of a SigLIP tower."""
    return any(isinstance(child, nn.MultiheadAttention) for child in module.children())


def _pooler(head: nn.Module) -> tuple[int, int]:
    """Multiply-adds per token, which gives a key and a value and meets one query, and per image."""
    attention: Any = next(m for m in head.modules() if isinstance(m, nn.MultiheadAttention))
    width = attention.embed_dim
    return 2 * width**2 + 2 * width, macs(head) - 2 * width**2
