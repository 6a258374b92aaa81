"""Vision encoders whose images are cut into tiles: LLaVA-NeXT and its descendants."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmcompress.patches.families.vision_encoder import block_means
from vlmcompress.patches.families.vision_encoders import PatchEncoder, clips
from vlmcompress.tokens import Layout


class TileEncoder(PatchEncoder):
    """Tiles that the model packs into one image with newlines (LLaVA-NeXT and its descendants).

    The model's own packing is used: cutting off padding, shrinking and newlines happen to the
    values as they happen to features.
    """

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        values = super().projected(base, modality, values, call)
        return self._frames(base, values) if modality == "video" else values

    def pieces(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        if modality == "video":
            return clips(values, call)
        return torch.split(values, self._tiles(base, call))

    def packed(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any], number: int
    ) -> Tensor:
        if modality == "video":
            return self._clip(base, values)
        newline = values.new_full((values.shape[-1],), torch.nan)
        sizes = call["image_sizes"][number : number + 1]
        packed: list[Tensor] = base.pack_image_features(
            [values], sizes, image_newline=newline, **self._packing(base, call)
        )[0]
        return packed[0]

    def _tiles(self, base: Any, call: Mapping[str, Any]) -> list[int]:
        """Tiles of each image."""
        count: Any = sys.modules[type(base).__module__]
        config = base.config
        pinpoints, size = config.image_grid_pinpoints, config.vision_config.image_size
        return [
            count.image_size_to_num_patches(image, pinpoints, size) for image in call["image_sizes"]
        ]

    def _packing(self, base: Any, call: Mapping[str, Any]) -> dict[str, Any]:
        return {"vision_feature_select_strategy": base.config.vision_feature_select_strategy}

    def _frames(self, base: Any, values: Tensor) -> Tensor:
        """Frames before the projector."""
        return block_means(values, int(base.config.spatial_pool_stride))

    def _clip(self, base: Any, values: Tensor) -> Tensor:
        """The frames [t, m, C] of a clip after the projector."""
        return values.flatten(0, 1)

    def tiles_of(self, base: Any, layout: Layout) -> int:
        if len(layout.parts) < 2:
            return super().tiles_of(base, layout)
        side, grid = layout.parts[0].h, layout.parts[1]
        size = base.config.vision_config.image_size
        shapes = [(h // size, w // size) for h, w in base.config.image_grid_pinpoints]
        fitting = [h * w for h, w in shapes if h * side >= grid.h and w * side >= grid.w]
        return 1 + int(min(fitting))

    def projected_of(
        self, base: Any, layout: Layout, patches: int, tiles: int, separated: bool
    ) -> int:
        pools = hasattr(base.config, "spatial_pool_stride") and len(layout.parts) == 1
        return len(layout) if pools else patches


class OneVisionEncoder(TileEncoder):
    """LLaVA-OneVision: several images in a prompt are not tiled; clips are shrunk by half."""

    def _tiles(self, base: Any, call: Mapping[str, Any]) -> list[int]:
        tiles, images = super()._tiles(base, call), call.get("batch_num_images")
        if images is None:
            return tiles
        alone = [count == 1 for count in images for _ in range(int(count))]
        return [count if tiled else 1 for count, tiled in zip(tiles, alone, strict=True)]

    def _packing(self, base: Any, call: Mapping[str, Any]) -> dict[str, Any]:
        ratio = call.get("vision_aspect_ratio") or base.config.vision_aspect_ratio
        return {"vision_aspect_ratio": ratio}

    def _frames(self, base: Any, values: Tensor) -> Tensor:
        return values

    def _clip(self, base: Any, values: Tensor) -> Tensor:
        clip: Tensor = base.apply_pooling(values).flatten(0, 1)
        return torch.cat([clip, clip.new_full((1, clip.shape[-1]), torch.nan)])
