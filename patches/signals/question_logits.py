"""How the first decoder layer matches the question with each token, before positions count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmcompress.patches.hooks.arguments import device_of
from vlmcompress.patches.sequence.layer_heads import unrotated_heads

SIGNAL = "question_logits"


def question_logits(layer: Any, text: Tensor, features: Tensor) -> Tensor:
    """[N, H] float32 (also under autocast): `VisualTokens.question_logits`.

    Args:
        layer: the first of the decoder.
        text: [T, D] embedded words of the question.
        features: [N, D] tokens of the image.
    """
    device = device_of(layer, features.device)
    q, k = (
        unrotated_heads(layer, name, rows.to(device)[None])[0]
        for name, rows in (("q", text), ("k", features))
    )
    with torch.autocast(device.type, enabled=False):
        # The mean over words of the products is the product with their mean.
        mean = q.float().mean(dim=1).view(len(k), -1, q.shape[-1])
        found: Tensor = torch.einsum("kgd,knd->nkg", mean, k.float()) * layer.self_attn.scaling
    return found.flatten(1).to(features.device)
