"""Feature calls of towers that take tiles of one size: what their arguments tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import unknown_size
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.tokens import Grid, Layout


def layouts_of(
    parts: ModelParts, modality: str, call: Mapping[str, Any], tile: Grid, budget: Budget | None
) -> Sequence[Layout]:
    """How the placeholders of a feature call lie, by its arguments alone.

    Args:
        parts: of the model.
        modality: "image" or "video".
        call: arguments of the feature call by name.
        tile: tokens of a tile.
        budget: for the message.

    Raises:
        BudgetError: only the features tell.
    """
    pixels = next(value for name, value in call.items() if name.startswith("pixel_values"))
    whole, count = parts.family.image_grid_of_tile(parts.model, modality, call, tile), len(pixels)
    if whole is None:
        whole, count = tile, parts.family.tiles(pixels) or 0
    if not count:
        raise unknown_size(budget)
    features = [pixels.new_empty(len(whole), 0)] * count
    return parts.family.layouts(parts.model, modality, features, call)


def check_feature_layer(base: nn.Module, call: Mapping[str, Any]) -> None:
    """Raise where a feature call asks for other layers than those that were hooked.

    Raises:
        UnsupportedCallError: it does.
    """
    for name in ("vision_feature_layer", "vision_feature_layers"):
        if call.get(name) not in (None, getattr(base.config, name, None)):
            raise UnsupportedCallError(
                f"{name}={call[name]!r} differs from the model's configuration: set it there "
                "before compress()"
            )
