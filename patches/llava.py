"""LLaVA-1.5: CLIP (or another fixed-resolution) tower, MLP projector, any decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.family import Family
from vlmcompress.tokens import Grid


class Llava(Family):
    """`LlavaForConditionalGeneration`."""

    name = "llava"
    class_name = "LlavaForConditionalGeneration"

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        return {"image": int(model.config.image_token_id)}  # type: ignore[union-attr,arg-type]

    def grids(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Grid]:
        sizes = call.get("image_sizes")
        if sizes is None:
            return [_square(len(tokens)) for tokens in features]
        # Towers of native resolution (Pixtral) get their sizes in pixels.
        patch = int(model.config.vision_config.patch_size)  # type: ignore[union-attr,arg-type]
        return [Grid(1, int(h) // patch, int(w) // patch) for h, w in sizes]

    def fixed_grid(self, model: nn.Module) -> Grid | None:
        vision: Any = model.config.vision_config  # type: ignore[union-attr]
        if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
            return None
        side = vision.image_size // vision.patch_size
        full = model.config.vision_feature_select_strategy == "full"  # type: ignore[union-attr]
        has_cls = vision.model_type == "clip_vision_model"
        return _square(side * side + int(full and has_cls))


def _square(count: int) -> Grid:
    """A square grid, or one row when CLS or registers were kept among the tokens."""
    side = math.isqrt(count)
    return Grid(1, side, side) if side * side == count else Grid(1, 1, count)
