"""Video-LLaVA: one tower for images and one for frames, which keep their CLS token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.families.family import IMAGES_AND_CLIPS, Family
from vlmcompress.patches.families.frames import BatchedTiles
from vlmcompress.patches.families.llava_next import side
from vlmcompress.patches.families.vision_encoders import TwoTowerEncoder
from vlmcompress.tokens import Grid, Layout, Separator


class VideoLlava(Family):
    """`VideoLlavaForConditionalGeneration`.

    The CLS token of a frame lies on no grid: like a newline it stays as long as any token of its
    frame does, and is not counted.
    """

    name = "video_llava"
    class_name = "VideoLlavaForConditionalGeneration"
    encoder = TwoTowerEncoder()
    stages = ("encoder", "projector", "decoder")
    video = True
    frames = BatchedTiles()
    feature_calls = IMAGES_AND_CLIPS

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        if modality == "image":
            return super().layouts(model, modality, features, call)
        pixels = call.get("pixel_values_videos")
        if pixels is None:
            raise UnsupportedCallError(
                "features that were encoded beforehand need pixel_values_videos beside them"
            )
        clips, frames = pixels.shape[:2]
        grid, frame = Grid(frames, side(model), side(model)), side(model) ** 2
        starts = (t * frame for t in range(frames))
        separators = tuple(Separator(s + t, s, s + frame) for t, s in enumerate(starts))
        return [Layout((grid,), separators)] * clips

    def image_grid_of_tile(
        self, model: nn.Module, modality: str, call: Mapping[str, Any], tile: Grid
    ) -> Grid | None:
        frames = call["pixel_values_videos"].shape[1] if modality == "video" else 1
        return Grid(frames, tile.h, tile.w)
