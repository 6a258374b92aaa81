"""Gemma 3: the tokens of an image attend to one another, most layers see a sliding window."""

from __future__ import annotations

from torch import nn

from vlmcompress.patches.families.family import Family, square
from vlmcompress.patches.families.vision_encoders import Gemma3Encoder
from vlmcompress.tokens import Grid


class Gemma3(Family):
    """`Gemma3ForConditionalGeneration`.

    Windows keep the distances of the whole prompt, so a layer sees the tokens that it would have
    seen, as far as they are kept.
    """

    name = "gemma3"
    class_name = "Gemma3ForConditionalGeneration"
    encoder = Gemma3Encoder()
    stages = ("encoder", "projector", "decoder")
    masks_in_base = True

    def fixed_grid(self, model: nn.Module) -> Grid | None:
        return square(int(model.config.mm_tokens_per_image))  # type: ignore[union-attr,arg-type]
