"""Vision encoders: which signals they give, and how patches become the tokens of the decoder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError


def signals_of(*tower: str) -> frozenset[str]:
    """All signals of a family whose tower gives some: what one layer gives, others do, too."""
    layers = {f"layer_{name}" for name in tower if name in ("keys", "cls_attention")}
    return frozenset({"text", "vocabulary", *tower, *layers})


class Encoder:
    """What `signals.py` needs to know of the vision side of a family. This one gives no signals."""

    signals: ClassVar[frozenset[str]] = signals_of()
    """Fields of `VisualTokens` beyond features and grid that can be collected."""
    towers: ClassVar[tuple[str, ...]] = ()
    """Vision towers in the base model."""
    projector: ClassVar[str] = "multi_modal_projector"
    """The projector in the base model, for families with `projection` among their signals."""

    def gives(self, base: Any) -> frozenset[str]:
        """The signals of this model: some families come with several kinds of tower."""
        return self.signals

    def depth(self, base: Any, layers: int) -> int:
        """How many of a tower's `layers` the features go through; the last is the feature layer."""
        return layers

    def whole(self, base: Any, depth: int) -> Sequence[int]:
        """Layers before `depth` whose attention spans an image or frame, not a window of it."""
        return range(depth)

    def patches(self, base: Any) -> int:
        """Of how many neighbouring patches the projector makes one feature."""
        return 1

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
        projected = self.projected(base, modality, values, call)
        pieces = self.pieces(base, modality, projected, call)
        packed = (self.packed(base, modality, p, call, n) for n, p in enumerate(pieces))
        return list(packed)

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        """Values of patches as values of what the projector makes: [B, m, C] or [M, C]."""
        raise NotImplementedError

    def pieces(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        """Those values taken apart: [m, C] or [tiles, m, C] for each layout of the family."""
        return list(values)

    def packed(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any], number: int
    ) -> Tensor:
        """The values of piece `number` as values of its placeholders [placeholders, C]."""
        return values


class PatchEncoder(Encoder):
    """One token for each patch of a CLIP or SigLIP tower (LLaVA-1.5)."""

    signals = signals_of("cls_attention", "encoder_attention", "keys", "relevance", "projection")
    towers: ClassVar[tuple[str, ...]] = ("vision_tower",)

    def gives(self, base: Any) -> frozenset[str]:
        """A SigLIP tower has no CLS and no CLIP text tower; others are not known well enough."""
        kind = base.config.vision_config.model_type
        if kind == "clip_vision_model":
            return self.signals
        if kind == "siglip_vision_model":
            return self.signals - {"cls_attention", "layer_cls_attention", "relevance"}
        return Encoder.signals

    def depth(self, base: Any, layers: int) -> int:
        return max(self.states(base, layers))

    def states(self, base: Any, layers: int) -> list[int]:
        """The hidden states that become the features; 0 is what enters the first layer."""
        chosen = self._chosen(base)
        states = [chosen] if isinstance(chosen, int) else chosen
        return [state if state >= 0 else layers + 1 + state for state in states]

    def _chosen(self, base: Any) -> Any:
        """The hidden state that becomes the features, or several."""
        return base.config.vision_feature_layer

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return self._selected(base, values, call)

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


class TwoTowerEncoder(PatchEncoder):
    """Video-LLaVA: one CLIP tower for images and one for frames, which keep their CLS."""

    towers = ("image_tower", "video_tower")

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return values if modality == "video" else super().projected(base, modality, values, call)

    def pieces(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        return clips(values, call) if modality == "video" else list(values)

    def packed(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any], number: int
    ) -> Tensor:
        return values.flatten(0, 1) if modality == "video" else values


class InternVLEncoder(PatchEncoder):
    """InternVL: blocks of patches become one token, tile by tile; it has the mean of its block."""

    signals = signals_of("cls_attention", "encoder_attention", "keys", "projection")

    def gives(self, base: Any) -> frozenset[str]:
        return self.signals

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return block_means(self._selected(base, values, call), self._block(base))

    def patches(self, base: Any) -> int:
        return self._block(base) ** 2

    def _block(self, base: Any) -> int:
        block: int = round(1 / base.config.downsample_ratio)
        return block


class Idefics3Encoder(Encoder):
    """Idefics3 and SmolVLM: SigLIP, and blocks of patches as in InternVL."""

    signals = signals_of("encoder_attention", "keys")
    towers: ClassVar[tuple[str, ...]] = ("vision_model",)

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return block_means(values, self._block(base))

    def _block(self, base: Any) -> int:
        return int(base.config.scale_factor)


class Gemma3Encoder(Idefics3Encoder):
    """Gemma 3: SigLIP, pooled to a fixed number of tokens."""

    towers = ("vision_tower",)

    def _block(self, base: Any) -> int:
        vision = base.config.vision_config
        return int(vision.image_size // vision.patch_size // base.config.mm_tokens_per_image**0.5)


def block_means(values: Tensor, block: int) -> Tensor:
    """[B, n, C] on square grids -> [B, n / block**2, C], the mean of each block x block patches."""
    side = round(values.shape[1] ** 0.5)
    grid = values.view(len(values), side // block, block, side // block, block, -1)
    return grid.mean((2, 4)).flatten(1, 2)


def clips(frames: Tensor, call: Mapping[str, Any]) -> list[Tensor]:
    """[frames of all clips, m, C] -> [frames, m, C] of each."""
    shape = call["pixel_values_videos"].shape[:2]
    return list(frames.unflatten(0, tuple(shape)))  # type: ignore[no-untyped-call]


def towers(encoder: Encoder, base: nn.Module) -> list[nn.Module]:
    """The vision towers of a base model."""
    return [base.get_submodule(name) for name in encoder.towers]
