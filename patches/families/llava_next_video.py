"""LLaVA-NeXT-Video: images as LLaVA-NeXT, clips with pooled frames and no newlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.families.family import IMAGES_AND_CLIPS
from vlmcompress.patches.families.frames import BatchedFrames
from vlmcompress.patches.families.llava_next import LlavaNext, side
from vlmcompress.tokens import Grid, Layout


class LlavaNextVideo(LlavaNext):
    """`LlavaNextVideoForConditionalGeneration`."""

    name = "llava_next_video"
    class_name = "LlavaNextVideoForConditionalGeneration"
    video = True
    frames = BatchedFrames()
    feature_calls = IMAGES_AND_CLIPS

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        if modality == "image":
            return super().layouts(model, modality, features, call)
        pooled = side(model) // int(model.config.spatial_pool_stride)  # type: ignore[union-attr,arg-type]
        # [tokens, D], or [frames, tokens of a frame, D] in older versions.
        counts = (tokens.shape[:-1].numel() for tokens in features)
        frames = (count // (pooled * pooled) for count in counts)
        return [Layout.of(Grid(t, pooled, pooled)) for t in frames]
