"""Linear layers that are no `nn.Linear` any more: quantised ones, and ones with an adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Int8Linear(nn.Module):
    """Weights as bytes with a scale per row, as quantisation libraries keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def plain(self) -> Tensor:
        return self.packed * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.plain())


class Adapted(nn.Module):
    """A frozen linear layer beside a product of two thin ones, as LoRA has it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(linear.in_features)
        self.base_layer = linear
        self.down = nn.Parameter(torch.randn(4, linear.in_features, generator=g) * 0.05)
        self.up = nn.Parameter(torch.randn(linear.out_features, 4, generator=g) * 0.05)

    def plain(self) -> Tensor:
        return self.base_layer.weight + self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def replace(model: Any, make: Callable[[nn.Linear], Any]) -> dict[str, Any]:
    """Put `make(linear)` in the place of every linear layer of the decoder."""
    placed = {}
    for path, module in list(model.model.language_model.named_modules()):
        for name in NAMES:
            if isinstance(getattr(module, name, None), nn.Linear):
                placed[f"{path}.{name}"] = make(getattr(module, name))
                setattr(module, name, placed[f"{path}.{name}"])
    return placed


def with_plain_weights(model: Any, placed: dict[str, Any]) -> Any:
    """The same model with ordinary linear layers of the same product."""
    for path, linear in model.model.language_model.named_modules():
        if path in placed:
            linear.weight.data = placed[path].plain().detach().clone()
    return model


@pytest.mark.parametrize("kind", [Int8Linear, Adapted])
def test_every_layer_stays_the_object_it_was_and_is_called_not_read(case, kind):
    reference = copy.deepcopy(case.model)
    before = case.logits()
    placed = replace(case.model, kind)
    assert len(placed) == 7 * len(case.model.model.language_model.layers)
    with_plain_weights(reference, placed)
    assert not torch.allclose(case.logits(), before, atol=1e-2)
    modules = {name: id(module) for name, module in case.model.named_modules()}
    weights = {name: value.clone() for name, value in case.model.state_dict().items()}
    with case.compress(model=reference) as wanted:
        logits = case.logits(reference)
    with case.compress() as c:
        assert torch.allclose(case.logits(), logits, atol=1e-3)
        assert {name: id(module) for name, module in case.model.named_modules()} == modules
        found, right = c.report().images[0], wanted.report().images[0]
        assert (found.kept, found.cuts) == (right.kept, right.cuts)
        assert found.cuts  # ranked with the layer's own queries and keys
    assert {name: id(module) for name, module in case.model.named_modules()} == modules
    for name, value in case.model.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, weights[name])
