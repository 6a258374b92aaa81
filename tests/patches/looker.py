"""A method that looks at what it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.tokens import VisualTokens


def looker(
    *needs: str, layers: Callable[[int, Sequence[int]], Sequence[int]] | None = None
) -> tuple[Selector, list[VisualTokens]]:
    """A method that keeps the first tokens, and the list where it puts what it was shown."""
    shown: list[VisualTokens] = []

    @dataclass(frozen=True)
    class Look(Selector):
        name: ClassVar[str] = "look"
        paper: ClassVar[str] = "-"
        summary: ClassVar[str] = "looks"

        def encoder_layers(self, depth: int, whole: Sequence[int]) -> Any:
            return super().encoder_layers(depth, whole) if layers is None else layers(depth, whole)

        def select(self, tokens: VisualTokens, count: int) -> torch.Tensor:
            shown.append(tokens)
            return torch.arange(count)

    Look.needs = frozenset(needs)
    return Look(), shown


def per_image(shown: list[VisualTokens], field: str) -> list[Any]:
    """The field of each image, its parts joined."""
    images: list[list[Any]] = []
    for tokens in shown:
        if tokens.part == 0:
            images.append([])
        images[-1].append(getattr(tokens, field))
    if isinstance(images[0][0], dict):
        return [{n: torch.cat([part[n] for part in parts]) for n in parts[0]} for parts in images]
    return [torch.cat(parts) for parts in images]


def every_layer(depth: int, whole: Sequence[int]) -> Sequence[int]:
    """For `looker(layers=...)`."""
    return range(depth)
