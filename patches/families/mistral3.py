"""Mistral 3: a tower of native resolution, patches merged before the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.hooks.arguments import on_host
from vlmcompress.tokens import Grid, Layout


class Mistral3(Family):
    """`Mistral3ForConditionalGeneration`; the tokens that end rows are text to it."""

    name = "mistral3"
    class_name = "Mistral3ForConditionalGeneration"

    def layouts(
        self, model: nn.Module, modality: str, features: Sequence[Tensor], call: Mapping[str, Any]
    ) -> list[Layout]:
        config: Any = model.config
        sizes = call.get("image_sizes")
        if sizes is None:
            raise UnsupportedCallError(
                "features that were encoded beforehand need image_sizes beside them"
            )
        pixels = config.vision_config.patch_size * config.spatial_merge_size
        return [Layout.of(Grid(1, int(h) // pixels, int(w) // pixels)) for h, w in on_host(sizes)]
