"""Vision encoders of one token a patch or a block of patches: CLIP, SigLIP and InternVL towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.families.vision_encoder import Encoder, block_means, signals_of
from vlmcompress.tokens import Layout


class PatchEncoder(Encoder):
    """One token for each patch of a CLIP or SigLIP tower (LLaVA-1.5)."""

    signals = signals_of("cls_attention", "encoder_attention", "keys", "relevance", "projection")

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

    def projected_of(
        self, base: Any, layout: Layout, patches: int, tiles: int, separated: bool
    ) -> int:
        return patches + self.cls_tokens(base) * tiles * separated  # CLS of frames


class InternVLEncoder(PatchEncoder):
    """InternVL: blocks of patches become one token, tile by tile; it has the mean of its block."""

    signals = signals_of("cls_attention", "encoder_attention", "keys", "projection")
    blocks = True

    def gives(self, base: Any) -> frozenset[str]:
        return self.signals

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return block_means(self._selected(base, values, call), self.merge_side(base))


class Idefics3Encoder(Encoder):
    """Idefics3 and SmolVLM: SigLIP, and blocks of patches as in InternVL."""

    signals = signals_of("encoder_attention", "keys")
    blocks = True
    towers = ("vision_model",)
    projector = "connector"

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return block_means(values, self.merge_side(base))


class ModernVBertEncoder(Idefics3Encoder):
    """ModernVBERT: the same."""

    def merge_side(self, base: Any) -> int:
        return int(base.config.pixel_shuffle_factor)


class PaliGemmaEncoder(Encoder):
    """PaliGemma: one token for each patch of a SigLIP tower."""

    signals = signals_of("encoder_attention", "keys", "projection")

    def projected(
        self, base: Any, modality: str, values: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        return values


class Gemma3Encoder(Idefics3Encoder):
    """Gemma 3: SigLIP, pooled to a fixed number of tokens."""

    towers = ("vision_tower",)
    projector = "multi_modal_projector"

    def merge_side(self, base: Any) -> int:
        vision = base.config.vision_config
        return int(vision.image_size // vision.patch_size // base.config.mm_tokens_per_image**0.5)


def clips(frames: Tensor, call: Mapping[str, Any]) -> list[Tensor]:
    """[frames of all clips, m, C] -> [frames, m, C] of each."""
    shape = call["pixel_values_videos"].shape[:2]
    return list(frames.unflatten(0, tuple(shape)))  # type: ignore[no-untyped-call]
