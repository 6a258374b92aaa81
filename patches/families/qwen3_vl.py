"""Qwen3-VL: as Qwen2-VL, and features of several ViT layers are added in the first decoder layers.

The frames of a clip have their timestamps as text between them, which stays.
"""

from __future__ import annotations

from vlmcompress.patches.families.qwen2_vl import Qwen2VL
from vlmcompress.patches.families.vision_encoders_packed import DeepEncoder


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration`."""

    name = "qwen3_vl"
    class_name = "Qwen3VLForConditionalGeneration"
    deepstack = "_deepstack_process"
    encoder = DeepEncoder()


class Qwen3VLMoe(Qwen3VL):
    """`Qwen3VLMoeForConditionalGeneration`."""

    name = "qwen3_vl_moe"
    class_name = "Qwen3VLMoeForConditionalGeneration"
