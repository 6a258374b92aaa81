"""Qwen2.5-VL: as Qwen2-VL for the engine; its window attention ends inside the encoder."""

from __future__ import annotations

from vlmcompress.patches.families.qwen2_vl import Qwen2VL
from vlmcompress.patches.families.vision_encoders_packed import WindowEncoder


class Qwen2_5VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration`."""

    name = "qwen2_5_vl"
    class_name = "Qwen2_5_VLForConditionalGeneration"
    encoder = WindowEncoder()
