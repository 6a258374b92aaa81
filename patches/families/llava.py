"""LLaVA-1.5: one square grid per image, projected by `get_image_features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.families.family import Family, square
from vlmcompress.patches.families.vision_encoders import PatchEncoder
from vlmcompress.patches.hooks.arguments import on_host
from vlmcompress.tokens import Grid, Layout


class Llava(Family):
    """`LlavaForConditionalGeneration`."""

    name = "llava"
    class_name = "LlavaForConditionalGeneration"
    encoder = PatchEncoder()
    stages = ("encoder", "projector", "decoder")

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        sizes = call.get("image_sizes")
        if sizes is None:
            return super().layouts(model, modality, features, call)
        # Towers of native resolution (Pixtral) get their sizes in pixels.
        patch = int(model.config.vision_config.patch_size)  # type: ignore[union-attr,arg-type]
        return [Layout.of(Grid(1, int(h) // patch, int(w) // patch)) for h, w in on_host(sizes)]

    def fixed_grid(self, model: nn.Module) -> Grid | None:
        vision: Any = model.config.vision_config  # type: ignore[union-attr]
        if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
            return None
        side = vision.image_size // vision.patch_size
        full = model.config.vision_feature_select_strategy == "full"  # type: ignore[union-attr]
        has_cls = vision.model_type == "clip_vision_model"
        return square(side * side + int(full and has_cls))
