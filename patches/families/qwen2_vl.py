"""Qwen2-VL: native resolution, images and clips, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.families.family import IMAGES_AND_CLIPS, Family
from vlmcompress.patches.families.frames import PackedFrames
from vlmcompress.patches.families.vision_encoders_packed import PackedEncoder
from vlmcompress.patches.hooks.arguments import on_host
from vlmcompress.tokens import Grid, Layout


class Qwen2VL(Family):
    """`Qwen2VLForConditionalGeneration`.

    Kept tokens keep their three position ids, and `rope_deltas` stays what the whole prompt gave.
    """

    name = "qwen2_vl"
    class_name = "Qwen2VLForConditionalGeneration"
    encoder = PackedEncoder()
    frames = PackedFrames()
    stages = ("pixels", "encoder", "projector", "decoder")
    video = True
    renumbers = False
    feature_calls = IMAGES_AND_CLIPS

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        config: Any = model.config
        merge = config.vision_config.spatial_merge_size
        rows = call.get(f"{modality}_grid_thw")
        if rows is None:
            raise UnsupportedCallError(
                f"features that were encoded beforehand need {modality}_grid_thw beside them"
            )
        return [Layout.of(Grid(t, h // merge, w // merge)) for t, h, w in on_host(rows)]
