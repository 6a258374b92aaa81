"""VipLLaVA: one square grid per image, from several layers of the tower."""

from __future__ import annotations

from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.vision_encoders import LayersEncoder


class VipLlava(Family):
    """`VipLlavaForConditionalGeneration`."""

    name = "vipllava"
    class_name = "VipLlavaForConditionalGeneration"
    encoder = LayersEncoder()
    stages = ("encoder", "projector", "decoder")
