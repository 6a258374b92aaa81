"""What the bare vision tower computes under eager attention, for each visual token.

Which places of the tower a token is made of is read off the gradient of its feature: nothing here
knows how a family orders or merges its patches.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.families.tower_layers import attention_layers


def running_towers(subject: Any) -> list[Any]:
    """The vision towers that run for the subject's modality."""
    base = subject.model.model
    if hasattr(base, "video_tower"):
        return [base.video_tower if subject.modality == "video" else base.image_tower]
    return [getattr(base, name) for name in family_of(subject.model).encoder.towers]


@contextmanager
def eager_spy(monkeypatch: Any, attention: Any) -> Any:
    """Weights [B, H, n, n] that eager attention computes, per module."""
    seen: dict[Any, list[torch.Tensor]] = {}
    module = sys.modules[type(attention).__module__]
    original = module.eager_attention_forward

    def spy(owner: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = original(owner, *args, **kwargs)
        seen.setdefault(owner, []).append(weights)
        return output, weights

    with monkeypatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", spy)
        yield seen


@dataclass
class Bare:
    """What the bare model does with some images."""

    weights: list[list[torch.Tensor]]
    """Per layer the attention of each call: [B, H, n, n]."""
    keys: list[torch.Tensor]
    """Per layer [P, D]: what its key projection gave for all places of the tower."""
    states: torch.Tensor
    """[P, D]: the output of the feature layer."""
    feature: int
    """The layer whose output becomes the features."""
    mixture: torch.Tensor
    """[images, N, P]: which places of the tower each visual token is made of; rows sum to 1."""

    def received(self, layer: int) -> torch.Tensor:
        """[images, N]."""
        places = [weights.mean((1, 2)).flatten() for weights in self.weights[layer]]
        received: torch.Tensor = self.mixture @ torch.cat(places)
        return received

    def cls(self, layer: int) -> torch.Tensor:
        """[images, N]."""
        return self.mixture @ self.weights[layer][0].mean(1)[:, 0].flatten()


def look_at(subject: Any, inputs: dict[str, torch.Tensor], monkeypatch: Any) -> Bare:
    """Run the feature call of the bare model under eager attention."""
    (tower,) = running_towers(subject)
    layers = attention_layers(tower)
    depth = feature_depth(subject, len(layers))
    states: list[torch.Tensor] = []
    keys: dict[Any, torch.Tensor] = {}

    def leaf(module: Any, args: Any, output: Any) -> Any:
        states.append(output.detach().requires_grad_())
        return states[-1]

    def note(module: Any, args: Any, output: torch.Tensor) -> None:
        fused = output.shape[-1] == 3 * module.in_features
        keys[module] = output.chunk(3, -1)[1] if fused else output

    attention = layers[depth - 1][1]
    made = [a.qkv if hasattr(a, "qkv") else a.k_proj for _, a in layers[:depth]]
    # Before the hooks with which transformers collects hidden states.
    made_leaf = layers[depth - 1][0].register_forward_hook(leaf, prepend=True)
    handles = [made_leaf, *(module.register_forward_hook(note) for module in made)]
    subject.model.set_attn_implementation("eager")
    try:
        with eager_spy(monkeypatch, attention) as seen, torch.enable_grad():
            pieces = subject.encode(inputs).pooler_output
            features = torch.cat([piece.flatten(0, -2) for piece in pieces])
            rows = [mix(feature, states[0]) for feature in features]
    finally:
        subject.model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
    mixture = torch.stack(rows).view(-1, subject.placeholders, states[0][..., 0].numel())
    return Bare(
        [seen[module] for _, module in layers[:depth]],
        [keys[module].flatten(0, -2).detach() for module in made],
        states[0].flatten(0, -2).detach(),
        depth - 1,
        torch.stack([subject.visual(image) for image in mixture]),
    )


def mix(feature: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """[P] equal weights of the places that a feature [D] depends on."""
    if not feature.requires_grad:
        return torch.zeros(states[..., 0].numel())
    weights = torch.randn(len(feature), generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(
        (feature * weights).sum(), states, retain_graph=True, allow_unused=True
    )
    used = slope.flatten(0, -2).abs().sum(-1) > 0
    return used / used.sum().clamp_min(1)


def feature_depth(subject: Any, layers: int) -> int:
    config = subject.model.config
    chosen = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", -1))
    states = [chosen] if isinstance(chosen, int) else chosen
    return max(range(layers + 1)[state] for state in states)
