"""Vision encoders whose images are cut into tiles: LLaVA-NeXT and its descendants."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmcompress.patches.families.vision_encoder import Encoder, block_means, signals_of
from vlmcompress.patches.families.vision_encoders import PatchEncoder, clips
from vlmcompress.patches.hooks.arguments import on_host
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


class BlockEncoder(Encoder):
    """Tiles or pictures of one size whose blocks of patches become a token each."""

    signals = signals_of("cls_attention", "encoder_attention", "keys")
    blocks = True

    def gives(self, base: Any) -> frozenset[str]:
        without_cls = self.signals - {"cls_attention", "layer_cls_attention"}
        return self.signals if self.cls_tokens(base) else without_cls

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        cls = self.cls_tokens(base)
        patches = values[:, : values.shape[1] - cls] if self.cls_place else values[:, cls:]
        side = self.merge_side(base)
        return patches if side == 1 else block_means(patches, side)


class PooledEncoder(Encoder):
    """Molmo 2: crops of a picture, and for each token the numbers of the patches it is made of."""

    signals = signals_of("encoder_attention", "keys")

    def depth(self, base: Any, layers: int) -> int:
        chosen = base.config.adapter_config.vision_feature_layer
        return int(max(layer + 1 if layer >= 0 else layers + 1 + layer for layer in chosen))

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        numbers = call[f"{modality}_token_pooling"].to(values.device)
        used = (numbers >= 0)[..., None]
        patches = values.reshape(-1, values.shape[-1])[numbers.clamp_min(0)]
        tokens = (patches * used).sum(1) / used.sum(1).clamp_min(1)
        grids = on_host(call[f"{modality}_grids"])
        counts = [h * w + more * wide for h, w, more, wide in grids]
        return list(tokens[used.flatten(1).any(-1)].split(counts))


class PlacedEncoder(Encoder):
    """Gemma 4: patches in any order with their places beside them, and places of none at the end.

    Blocks of them become one token, row by row; the frames of clips are pictures of their own.
    """

    signals = signals_of("encoder_attention", "keys")
    sizes = "{}_position_ids"

    def grids(
        self, base: Any, modality: str, call: Mapping[str, Any]
    ) -> list[tuple[int, int, int]]:
        side = self.merge_side(base)
        shapes = [(int(one[:, 1].max()), int(one[:, 0].max())) for one in _places(modality, call)]
        blocks = [((y + 1) // side, (x + 1) // side) for y, x in shapes]
        frames = _frames(modality, call, len(blocks))
        starts = [sum(frames[:number]) for number in range(len(frames))]
        return [(t, *blocks[start]) for t, start in zip(frames, starts, strict=True)]

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        side, places = self.merge_side(base), _places(modality, call).to(values.device)
        each = [_blocks(*one, side) for one in zip(values, places, strict=True)]
        parts = iter(each)
        frames = _frames(modality, call, len(each))
        return [torch.cat([next(parts) for _ in range(count)]) for count in frames]


def _places(modality: str, call: Mapping[str, Any]) -> Tensor:
    """[pictures, n, 2] (x, y), -1 where there is no patch."""
    places: Tensor = call[f"{modality}_position_ids"]
    return places.flatten(0, -3)


def _frames(modality: str, call: Mapping[str, Any], pictures: int) -> list[int]:
    """Pictures of each image or clip."""
    counts = call.get("num_frames_per_video") if modality == "video" else None
    return [1] * pictures if counts is None else [int(count) for count in on_host(counts)]


def _blocks(values: Tensor, places: Tensor, side: int) -> Tensor:
    """[n, C] at places [n, 2] (x, y) -> [blocks, C]."""
    real = places[:, 0] >= 0
    x, y = (places[real] // side).unbind(-1)
    number = y * (x.max() + 1) + x
    own = values[real]
    total = own.new_zeros(int(number.max()) + 1, own.shape[-1]).index_add_(0, number, own)
    return total / side**2
