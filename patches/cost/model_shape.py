"""The sizes of a model that its cost depends on, read from its modules.

Modules rather than configurations: every family names its fields in its own way, while a matrix
costs one multiply-add per weight and token whatever it is called. Models on the meta device have
shapes, too.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.flops.exact import LayerShape, ModelShape
from vlmcompress.patches.cost.layer_shapes import decoder_layers, macs, width
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
    tower, base = parts.towers[0], parts.base
    encoder = parts.family.encoder
    per_token = [base.get_submodule(name) for name in encoder.per_token]
    per_patch = [base.get_submodule(name) for name in encoder.per_patch]
    projectors = parts.family.projectors(base) + per_token
    layers, inside = attention_layers(tower), set(tower.modules())
    head = next((m for m in inside if _is_pooler(m)), None)
    others = [layer for layer, _ in layers] + [p for p in projectors if p in inside]
    others += [] if head is None else [head]
    patchwise = sum(macs(part) for part in per_patch)
    outside = sum(macs(part) for part in per_patch if part not in inside)
    any_model: Any = model
    return ModelShape(
        embedding=macs(tower) - sum(map(macs, others)) + outside,
        encoder=tuple(LayerShape(macs(layer), width(attention)) for layer, attention in layers),
        projector=sum(map(_projecting, projectors)) - patchwise,
        decoder=decoder_layers(parts),
        lm_head=macs(any_model.get_output_embeddings()),
        pooler=(0, 0) if head is None else _pooler(head),
        entry=macs(parts.lm) - sum(map(macs, parts.layers)),
        all_logits="logits_to_keep" not in inspect.signature(any_model.forward).parameters,
        value_bytes=any_model.dtype.itemsize,
    )


def _projecting(module: nn.Module) -> int:
    """Multiply-adds of one token; a table of embeddings is multiplied with shares of its rows."""
    return module.weight.numel() if isinstance(module, nn.Embedding) else macs(module)


def _is_pooler(module: nn.Module) -> bool:
    """Whether it is the attention pooling head of a SigLIP tower."""
    return any(isinstance(child, nn.MultiheadAttention) for child in module.children())


def _pooler(head: nn.Module) -> tuple[int, int]:
    """Multiply-adds per token, which gives a key and a value and meets one query, and per image."""
    attention: Any = next(m for m in head.modules() if isinstance(m, nn.MultiheadAttention))
    size = attention.embed_dim
    return 2 * size**2 + 2 * size, macs(head) - 2 * size**2
