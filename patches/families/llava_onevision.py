"""LLaVA-OneVision: images as LLaVA-NeXT, clips with halved frames and one newline at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.families.frames import BatchedFrames
from vlmcompress.patches.families.llava_next import side
from vlmcompress.patches.families.llava_next_video import LlavaNextVideo
from vlmcompress.patches.families.vision_encoders_tiles import OneVisionEncoder
from vlmcompress.tokens import Grid, Layout, Separator


class LlavaOnevision(LlavaNextVideo):
    """`LlavaOnevisionForConditionalGeneration`."""

    name = "llava_onevision"
    class_name = "LlavaOnevisionForConditionalGeneration"
    encoder = OneVisionEncoder()
    frames = BatchedFrames(behind=1)

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        if modality == "image":
            return super().layouts(model, modality, features, call)
        half = -(-side(model) // 2)
        return [_clip(len(tokens) - 1, half) for tokens in features]


def _clip(count: int, half: int) -> Layout:
    return Layout((Grid(count // (half * half), half, half),), (Separator(count, 0, count),))
