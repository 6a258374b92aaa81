"""InternVL: the tiles of an image follow one another; frames of a clip are images of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.frames import Tiles
from vlmcompress.patches.families.vision_encoders import InternVLEncoder
from vlmcompress.tokens import Grid


class InternVL(Family):
    """`InternVLForConditionalGeneration`.

    Its processor turns a clip into one image for each frame, with text between them.
    """

    name = "internvl"
    class_name = "InternVLForConditionalGeneration"
    encoder = InternVLEncoder()
    stages = ("encoder", "projector", "decoder")
    video = True
    frames = Tiles()

    def image_grid_of_tile(
        self, model: nn.Module, modality: str, call: Mapping[str, Any], tile: Grid
    ) -> Grid | None:
        return None  # only the prompt tells which tiles make up an image

    def tiles(self, pixels: Tensor) -> int:
        return len(pixels)

    def continues(self, ids: list[int], pieces: list[list[int]]) -> list[bool]:
        ends = [None, *(piece[-1] for piece in pieces)]
        return [
            end is not None and piece[0] == end + 1
            for end, piece in zip(ends, pieces, strict=False)
        ]
