"""VipLLaVA: one square grid per image, from several layers of the tower."""

from __future__ import annotations

from vlmcompress.patches.encoders import LayersEncoder
from vlmcompress.patches.family import Family


class VipLlava(Family):
    """`VipLlavaForConditionalGeneration`."""

    name = "vipllava"
    class_name = "VipLlavaForConditionalGeneration"
    encoder = LayersEncoder()
    stages = ("encoder", "projector", "decoder")
