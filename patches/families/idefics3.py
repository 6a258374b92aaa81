"""Idefics3: tiles with markers between them, the overview last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.families.family import Family, square
from vlmcompress.patches.families.vision_encoders import Idefics3Encoder
from vlmcompress.tokens import Grid, Layout


class Idefics3(Family):
    """`Idefics3ForConditionalGeneration`."""

    name = "idefics3"
    class_name = "Idefics3ForConditionalGeneration"
    encoder = Idefics3Encoder()
    stages = ("encoder", "projector", "decoder")
    text_module = "text_model"

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        config: Any = model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        tile = Layout.of(square(side**2 // config.scale_factor**2))
        # One tensor for each prompt, with the tiles of all its images.
        return [tile] * sum(len(tokens) // len(tile) for tokens in features)

    def image_grid_of_tile(
        self, model: nn.Module, modality: str, call: Mapping[str, Any], tile: Grid
    ) -> Grid | None:
        return None  # only the prompt tells which tiles make up an image

    def tiles(self, pixels: Tensor) -> int:
        """Rows with fewer tiles than others are filled up with zeros, which are not encoded."""
        return int(pixels.flatten(2).any(2).sum())

    def continues(self, ids: list[int], pieces: list[list[int]]) -> list[bool]:
        return until_overview(ids, pieces)


def until_overview(ids: list[int], pieces: list[list[int]]) -> list[bool]:
    """For images whose tiles each follow a marker and end with the overview.

    The last piece of a prompt is an overview, so the token before it marks one.
    """
    markers = [ids[piece[0] - 1] if piece[0] else None for piece in pieces]
    return [before is not None and before != markers[-1] for before in [None, *markers][:-1]]
