"""Vision encoders: which signals they give, and how patches become the tokens of the decoder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError


class Encoder:
    """What `signals.py` needs to know of the vision side of a family. This one gives no signals."""

    signals: ClassVar[frozenset[str]] = frozenset({"text"})
    """Fields of `VisualTokens` beyond features and grid that can be collected."""
    towers: ClassVar[tuple[str, ...]] = ()
    """Vision towers in the base model."""

    def gives(self, base: Any) -> frozenset[str]:
        """The signals of this model: some families come with several kinds of tower."""
        return self.signals

    def depth(self, base: Any, layers: int) -> int:
        """How many of a tower's `layers` the features go through; the last is the feature layer."""
        return layers

    def whole(self, base: Any, depth: int) -> Sequence[int]:
        """Layers before `depth` whose attention spans an image or frame, not a window of it."""
        return range(depth)

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        """Values of patches as values of placeholders.

        Args:
            base: the base model.
            modality: "image" or "video".
            values: [B, n, C] as the tower takes images (CLS among the n), or [P, C] where it takes
                the patches of all images as one sequence.
            call: arguments of the feature call by name.

        Returns:
            Per layout of the family [placeholders, C]; anything at separators.
        """
        raise NotImplementedError


class PatchEncoder(Encoder):
    """One token for each patch of a CLIP or SigLIP tower (LLaVA-1.5)."""

    signals = frozenset({"cls_attention", "encoder_attention", "keys", "relevance", "text"})
    towers: ClassVar[tuple[str, ...]] = ("vision_tower",)

    def gives(self, base: Any) -> frozenset[str]:
        """A SigLIP tower has no CLS and no CLIP text tower; others are not known well enough."""
        kind = base.config.vision_config.model_type
        if kind == "clip_vision_model":
            return self.signals
        if kind == "siglip_vision_model":
            return self.signals - {"cls_attention", "relevance"}
        return Encoder.signals

    def depth(self, base: Any, layers: int) -> int:
        chosen = self._chosen(base)
        # hidden_states[0] is what enters the first layer.
        states = [chosen] if isinstance(chosen, int) else chosen
        return max(state if state >= 0 else layers + 1 + state for state in states)

    def _chosen(self, base: Any) -> Any:
        """The hidden state that becomes the features, or several."""
        return base.config.vision_feature_layer

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        return list(self._selected(base, values, call))

    def _selected(self, base: Any, values: Tensor, call: Mapping[str, Any]) -> Tensor:
        """Without CLS, where the model drops it."""
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            asked = call.get(name)
            if asked is not None and asked != getattr(base.config, name):
                raise UnsupportedCallError(
                    f"{name}={asked!r} differs from the model's configuration, which says where "
                    "signals come from: set it there before compress()"
                )
        return values[:, 1:] if base.config.vision_feature_select_strategy == "default" else values


class LayersEncoder(PatchEncoder):
    """VipLLaVA: features of several layers side by side, never with CLS."""

    def _chosen(self, base: Any) -> Any:
        config = base.config  # in 5.19 the name was a plural
        plural = hasattr(config, "vision_feature_layers")
        return config.vision_feature_layers if plural else config.vision_feature_layer

    def _selected(self, base: Any, values: Tensor, call: Mapping[str, Any]) -> Tensor:
        return values[:, 1:]


class TileEncoder(PatchEncoder):
    """Tiles that the model packs into one image with newlines (LLaVA-NeXT and its descendants).

    The model's own packing is used: cutting off padding, shrinking and newlines happen to the
    values as they happen to features.
    """

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        values = self._selected(base, values, call)
        if modality == "video":
            return self._frames(base, values, call["pixel_values_videos"].shape[:2])
        tiles = torch.split(values, self._tiles(base, call))
        newline = values.new_full((values.shape[-1],), torch.nan)
        packed: list[Tensor] = base.pack_image_features(
            tiles, call["image_sizes"], image_newline=newline, **self._packing(base, call)
        )[0]
        return packed

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

    def _frames(self, base: Any, values: Tensor, shape: Sequence[int]) -> list[Tensor]:
        pooled = block_means(values, int(base.config.spatial_pool_stride))
        return list(pooled.unflatten(0, tuple(shape)).flatten(1, 2))  # type: ignore[no-untyped-call]


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

    def _frames(self, base: Any, values: Tensor, shape: Sequence[int]) -> list[Tensor]:
        clips = base.apply_pooling(values).reshape(shape[0], -1, values.shape[-1])
        return [torch.cat([clip, clip.new_full((1, clip.shape[-1]), torch.nan)]) for clip in clips]


class TwoTowerEncoder(PatchEncoder):
    """Video-LLaVA: one CLIP tower for images and one for frames, which keep their CLS."""

    towers = ("image_tower", "video_tower")

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        if modality == "image":
            return super().to_tokens(base, modality, values, call)
        clips = call["pixel_values_videos"].shape[0]
        return list(values.reshape(clips, -1, values.shape[-1]))


class InternVLEncoder(PatchEncoder):
    """InternVL: blocks of patches become one token, tile by tile; it has the mean of its block."""

    signals = frozenset({"cls_attention", "encoder_attention", "keys", "text"})

    def gives(self, base: Any) -> frozenset[str]:
        return self.signals

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        block = round(1 / base.config.downsample_ratio)
        return list(block_means(self._selected(base, values, call), block))


class Idefics3Encoder(Encoder):
    """Idefics3 and SmolVLM: SigLIP, and blocks of patches as in InternVL."""

    signals = frozenset({"encoder_attention", "keys", "text"})
    towers: ClassVar[tuple[str, ...]] = ("vision_model",)

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        return list(block_means(values, self._block(base)))

    def _block(self, base: Any) -> int:
        return int(base.config.scale_factor)


class Gemma3Encoder(Idefics3Encoder):
    """Gemma 3: SigLIP, pooled to a fixed number of tokens."""

    towers = ("vision_tower",)

    def _block(self, base: Any) -> int:
        vision = base.config.vision_config
        return int(vision.image_size // vision.patch_size // base.config.mm_tokens_per_image**0.5)


class PackedEncoder(Encoder):
    """All patches in one sequence, merged in groups of neighbours in it (Qwen2-VL, Qwen3-VL).

    A token has the mean of its patches. Attention stays within a frame.
    """

    signals = frozenset({"encoder_attention", "keys", "text"})
    towers = ("visual",)

    def to_tokens(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> list[Tensor]:
        merge = base.config.vision_config.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in call[f"{modality}_grid_thw"].tolist()]
        means = values.view(-1, merge * merge, values.shape[-1]).mean(1)
        images = torch.split(means, [t * h * w for t, h, w in grids])
        return [self._raster(base, *one) for one in zip(images, grids, strict=True)]

    def _raster(self, base: Any, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return tokens


class WindowEncoder(PackedEncoder):
    """Qwen2.5-VL: the tower sees tokens window by window; most layers attend within a window.

    The attention received in such a layer compares tokens of one window (its mean over a window of
    n tokens is 1/n patches); `whole` names the others.
    """

    def whole(self, base: Any, depth: int) -> Sequence[int]:
        full = base.config.vision_config.fullatt_block_indexes
        return sorted(layer for layer in full if layer < depth)

    def _raster(self, base: Any, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        config = base.config.vision_config
        size = config.window_size // config.spatial_merge_size // config.patch_size
        t, h, w = (torch.arange(n) for n in grid)
        across = -(-grid[2] // size)
        window = (h // size)[:, None] * across + (w // size)[None]
        window = (t[:, None, None] * (window.max() + 1) + window).flatten()
        raster = torch.empty_like(tokens)
        raster[window.argsort(stable=True).to(tokens.device)] = tokens
        return raster


def block_means(values: Tensor, block: int) -> Tensor:
    """[B, n, C] on square grids -> [B, n / block**2, C], the mean of each block x block patches."""
    side = round(values.shape[1] ** 0.5)
    grid = values.view(len(values), side // block, block, side // block, block, -1)
    return grid.mean((2, 4)).flatten(1, 2)


def towers(encoder: Encoder, base: nn.Module) -> list[nn.Module]:
    """The vision towers of a base model."""
    return [base.get_submodule(name) for name in encoder.towers]
