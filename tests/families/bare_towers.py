"""What the bare vision tower of any type computes under eager attention, token by token.

As `tests/patches/bare_tower.py`, which it is made of: which places of the tower a token is made of
is read off the gradient of its feature, so nothing here knows how a type orders or merges patches.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bare_tower import mix
from merged_tower import keys_of
from model_case import Case, Inputs
from torch import Tensor

from vlmcompress.patches.families.tower_layers import attention_layers


@dataclass
class BareTower:
    """What happened in one feature call."""

    received: list[Tensor]
    """Per layer [places]: the mean over heads and the queries that may see the place."""
    rows: list[Tensor]
    """Per layer [places]: the attention of each tile's CLS; nothing without one."""
    keys: list[Tensor]
    """Per layer [places, D]: what the key projection gave."""
    mixture: list[Tensor]
    """Per picture [N, places]: which places each token is made of; rows sum to 1."""


def look_at(case: Case, inputs: Inputs, modality: str, monkeypatch: Any) -> BareTower:
    """Run the feature call of the bare model under eager attention."""
    base: Any = case.parts.base
    (tower,) = case.parts.towers
    encoder = case.parts.family.encoder
    layers = attention_layers(tower)
    layers = layers[: encoder.depth(base, len(layers))]
    leaf: list[Tensor] = []
    keys: list[Tensor] = []

    def split(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        leaf.append(hidden.detach().requires_grad_())
        return (leaf[0], *output[1:]) if isinstance(output, tuple) else leaf[0]

    def note(module: Any, args: Any, output: Tensor) -> None:
        fused = output.shape[-1] == 3 * args[0].shape[-1]
        keys.append((output.chunk(3, -1)[1] if fused else output).detach())

    made = [keys_of(attention) for _, attention in layers]
    handles = [layers[-1][0].register_forward_hook(split, prepend=True)]
    handles += [module.register_forward_hook(note) for module in made]
    call = getattr(base, case.parts.family.feature_calls[modality])
    known = inspect.signature(call).parameters
    try:
        with _spy(monkeypatch, layers[0][1]) as seen, torch.enable_grad():
            output = call(**{n: v for n, v in inputs.items() if n in known}, return_dict=True)
            features = case.parts.family.features(output)
            pieces = [piece.reshape(-1, piece.shape[-1]) for piece in features]
            mixture = [torch.stack([mix(one, leaf[0]) for one in piece]) for piece in pieces]
    finally:
        for handle in handles:
            handle.remove()
    calls = [seen[module] for _, module in layers]
    received = [torch.cat([_received(*each).flatten() for each in layer]) for layer in calls]
    rows = []
    if encoder.cls_tokens(base):
        rows = [layer[0][0].mean(1)[:, encoder.cls_place].flatten() for layer in calls]
    places = leaf[0][..., 0].numel()
    return BareTower(received, rows, [key.reshape(places, -1) for key in keys], mixture)


def _received(weights: Tensor, mask: Any) -> Tensor:
    """[B, n] of attention [B, H, n, n]."""
    allowed = torch.ones_like(weights[:, 0], dtype=torch.bool)
    if torch.is_tensor(mask):
        allowed = (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand_as(allowed)
    # Rows of padding see what the others see, and are no queries.
    real = allowed.diagonal(dim1=1, dim2=2)
    summed = (weights.mean(1) * real[..., None]).sum(1)
    return summed / (allowed & real[..., None]).sum(1).clamp_min(1)


@contextmanager
def _spy(monkeypatch: Any, attention: Any) -> Iterator[dict[Any, list[tuple[Tensor, Any]]]]:
    """Weights and masks of each call of eager attention, per module."""
    seen: dict[Any, list[tuple[Tensor, Any]]] = {}
    written = sys.modules[type(attention).__module__]

    def spy(original: Any, owner: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = original(owner, *args, **kwargs)
        mask = args[3] if len(args) > 3 else kwargs.get("attention_mask")
        seen.setdefault(owner, []).append((weights.detach(), mask))
        return output, weights

    with monkeypatch.context() as patch:
        for name in [n for n in vars(written) if n.endswith("eager_attention_forward")]:
            patch.setattr(written, name, partial(spy, getattr(written, name)))
        yield seen
