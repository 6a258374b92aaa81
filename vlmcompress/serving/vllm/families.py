"""The pruning models: vLLM's own classes with ours before them, made when vLLM asks for one.

`families.LlavaForConditionalGeneration` is the class that is registered for that architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches.families.llava_next import with_newlines
from vlmcompress.patches.families.vision_encoder import Encoder
from vlmcompress.serving.vllm.family import Family, shown
from vlmcompress.tokens import Grid, Layout

_OLD_TOWER = {r"^((model\.)?vision_tower\.)(?!vision_model\.)": r"\1vision_model."}
"""Checkpoints that transformers 5 wrote lack a level that vLLM expects."""


class Llava(Family):
    """One square grid per image, from a CLIP or SigLIP tower."""

    adapter = "llava"
    renames = _OLD_TOWER

    def check_config(self, config: Any) -> None:
        kind = config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnsupportedModelError(f"a LLaVA with a {kind} cannot be served: its grids vary")


class LlavaNext(Llava):
    """An overview and tiles, joined and cut to the shape of the image, with newlines after rows.

    vLLM packs tiles in a way of its own, so that no signals of the tower are given.
    """

    adapter = "llava_next"

    def gives(self, config: Any) -> frozenset[str]:
        return Encoder.signals

    def layout(self, config: Any, modality: str, item: Mapping[str, Any], count: int) -> Layout:
        size = item["image_sizes"].flatten().tolist()
        side = config.vision_config.image_size // config.vision_config.patch_size
        rows, width = self.packed(config, size, side)
        expected = side**2 + rows * (width + 1)
        if expected != count:
            raise UnsupportedCallError(
                f"an image of {size[0]} x {size[1]} pixels has {count} tokens here and {expected} "
                "in transformers, so that its rows are not known"
            )
        return with_newlines(count, rows, side)

    def packed(self, config: Any, size: Sequence[int], side: int) -> tuple[int, int]:
        """Rows and columns of the joined tiles of an image of `size`, height first."""
        from transformers.models.llava_next import modeling_llava_next as of

        pinpoints, pixels = config.image_grid_pinpoints, config.vision_config.image_size
        high, wide = of.get_anyres_image_grid_shape(size, pinpoints, pixels)
        tiles = torch.empty(1, high * side, wide * side, device="meta")
        return tuple(of.unpad_image(tiles, size).shape[1:])


_MOST_TILES = 9
"""In vLLM, whatever the configuration says; in all checkpoints."""


class LlavaOnevision(LlavaNext):
    """As LLaVA-NeXT, but that large pictures are shrunk; clips end with one newline."""

    adapter = "llava_onevision"
    modalities = ("image", "video")

    def layout(self, config: Any, modality: str, item: Mapping[str, Any], count: int) -> Layout:
        if modality == "image":
            return super().layout(config, modality, item, count)
        clip = torch.empty(count, 0, device="meta")
        return self.adapted.layouts(shown(config), modality, [clip], {})[0]

    def packed(self, config: Any, size: Sequence[int], side: int) -> tuple[int, int]:
        rows, width = super().packed(config, size, side)
        ratio = math.sqrt(rows * width / (_MOST_TILES * side**2))
        return (int(rows // ratio), int(width // ratio)) if ratio > 1.1 else (rows, width)


class Qwen2VL(Family):
    """Images and clips of any size, positions with three axes."""

    adapter = "qwen2_vl"
    modalities: tuple[str, ...] = ("image", "video")
    renumbers = False
    tower, attention, projection = "visual.blocks", "attn", "qkv"


class Qwen2_5VL(Qwen2VL):
    """As Qwen2-VL, with windows in most layers of the tower."""

    adapter = "qwen2_5_vl"


_TIMESTAMP = 16
"""Tokens of "<1234.5 seconds>" and the marks around a frame, at most."""


class Qwen3VL(Qwen2VL):
    """As Qwen2-VL, with timestamps between the frames of clips."""

    adapter = "qwen3_vl"
    interleaved = ("video",)

    def most_text(self, info: Any) -> int:
        processor = info.get_video_processor()
        return _TIMESTAMP * int(processor.max_frames) // int(processor.temporal_patch_size)


class InternVL(Family):
    """Tiles of an image one after the other, each of the same square grid."""

    adapter = "internvl"
    tower, attention = "vision_tower.encoder.layer", "attention"

    def layout(self, config: Any, modality: str, item: Mapping[str, Any], count: int) -> Layout:
        side = math.isqrt(config.image_seq_length)
        return Layout((Grid(1, side, side),) * (count // side**2))


FAMILIES: dict[str, type[Family]] = {
    "LlavaForConditionalGeneration": Llava,
    "LlavaNextForConditionalGeneration": LlavaNext,
    "LlavaOnevisionForConditionalGeneration": LlavaOnevision,
    "Qwen2VLForConditionalGeneration": Qwen2VL,
    "Qwen2_5_VLForConditionalGeneration": Qwen2_5VL,
    "Qwen3VLForConditionalGeneration": Qwen3VL,
    "InternVLForConditionalGeneration": InternVL,
}


@cache
def family_of(architecture: str) -> Family:
    """What a model of an architecture is like."""
    return FAMILIES[architecture]()


def __getattr__(name: str) -> Any:
    if name in FAMILIES:
        return _made(name)
    raise AttributeError(name)


@cache
def _made(architecture: str) -> type:
    from vllm.model_executor.models import ModelRegistry
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from vlmcompress.serving.vllm.compat import mend_cpu_runner
    from vlmcompress.serving.vllm.model import Pruned
    from vlmcompress.serving.vllm.processor import pruning

    mend_cpu_runner()
    base, family = ModelRegistry.models[architecture].load_model_cls(), family_of(architecture)
    factories = base._processor_factory
    made = type(
        architecture,
        (Pruned, base),
        {"family": family, "supports_mrope": True, "__module__": __name__, **family.mapper(base)},
    )
    registered: type = MULTIMODAL_REGISTRY.register_processor(
        pruning(factories.processor, family),
        info=factories.info,
        dummy_inputs=factories.dummy_inputs,
    )(made)
    return registered
