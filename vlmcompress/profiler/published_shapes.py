"""Shapes of published models, for measuring latency with random weights.

Time depends on the shape, and hardly on values. Configurations are those that the checkpoints were
published with on the Hugging Face Hub; the tests hold the number of parameters against theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from vlmcompress.errors import VLMCompressError
from vlmcompress.registry import unknown

_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""openai/clip-vit-large-patch14-336."""
_VICUNA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
}
"""lmsys/vicuna-7b-v1.5 with the rows that llava-hf adds to the vocabulary."""
_QWEN2_0_5B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
"""Qwen/Qwen2-0.5B-Instruct with the vocabulary of llava-hf."""


def _pinpoints(tile: int, most: int, *, square: bool) -> list[list[int]]:
    """Canvases of `most` x `most` tiles, or where not `square`, of at most so many."""
    sides = range(1, most + 1)
    return [[tile * h, tile * w] for h in sides for w in sides if square or h * w <= most]


@dataclass(frozen=True)
class PublishedShape:
    """A model as it was published."""

    family: str
    """Prefix of the transformers classes: "Llava" for LlavaForConditionalGeneration."""
    config: Mapping[str, Any]
    """Arguments of its configuration class."""
    parameters: float | None
    """As published; None for a shape that nobody trained."""
    tokens: int
    """Visual tokens of an image, where nothing else is asked for."""


SHAPES: dict[str, PublishedShape] = {
    # llava-hf/llava-1.5-7b-hf
    "llava-1.5-7b": PublishedShape(
        "Llava",
        {"vision_config": _CLIP_L, "text_config": _VICUNA_7B, "image_token_index": 32000},
        7.063e9,
        576,
    ),
    # llava-hf/llava-v1.6-vicuna-7b-hf
    "llava-next-7b": PublishedShape(
        "LlavaNext",
        {
            "vision_config": _CLIP_L,
            "text_config": _VICUNA_7B,
            "image_token_index": 32000,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        7.063e9,
        2880,
    ),
    # llava-hf/llava-onevision-qwen2-0.5b-ov-hf
    "llava-onevision-0.5b": PublishedShape(
        "LlavaOnevision",
        {
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "text_config": _QWEN2_0_5B,
            "image_token_index": 151646,
            "video_token_index": 151647,
            "image_grid_pinpoints": _pinpoints(384, 6, square=True),
            "vision_aspect_ratio": "anyres_max_9",
            "tie_word_embeddings": True,
        },
        0.894e9,
        3645,
    ),
    # Qwen/Qwen2.5-VL-7B-Instruct
    "qwen2.5-vl-7b": PublishedShape(
        "Qwen2_5_VL",
        {
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": [16, 24, 24],
                },
            },
        },
        8.292e9,
        1369,
    ),
    # Qwen/Qwen3-VL-4B-Instruct
    "qwen3-vl-4b": PublishedShape(
        "Qwen3VL",
        {
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "out_hidden_size": 2560,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
                "tie_word_embeddings": True,
            },
            "tie_word_embeddings": True,
        },
        4.438e9,
        1024,
    ),
    # OpenGVLab/InternVL3-2B-hf
    "internvl3-2b": PublishedShape(
        "InternVL",
        {
            "vision_config": {
                "model_type": "internvl_vision",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
            },
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "vocab_size": 151674,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            "image_token_id": 151667,
            "tie_word_embeddings": False,
        },
        2.089e9,
        1792,
    ),
    # The two below are no published models but whole decoders that a CPU can run.
    "qwen2-0.5b-llava": PublishedShape(
        "Llava",
        {"vision_config": _CLIP_L, "text_config": _QWEN2_0_5B, "image_token_index": 151646},
        None,
        576,
    ),
    "qwen2-0.5b-llava-next": PublishedShape(
        "LlavaNext",
        {
            "vision_config": _CLIP_L,
            "text_config": _QWEN2_0_5B,
            "image_token_index": 151646,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        None,
        2880,
    ),
}


def shape_named(name: str) -> PublishedShape:
    """One of `SHAPES`.

    Raises:
        UnknownNameError: there is none of this name; suggests the nearest.
    """
    if name not in SHAPES:
        raise unknown("shape", name, list(SHAPES))
    return SHAPES[name]


def configuration(name: str, layers: int | None = None, encoder_layers: int | None = None) -> Any:
    """The configuration of a shape, with the first so many layers of decoder and vision tower.

    Raises:
        VLMCompressError: unknown shape, or more layers than it has, or none.
    """
    shape = shape_named(name)
    config = getattr(transformers, f"{shape.family}Config")(
        **{
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in shape.config.items()
        }
    )
    if layers is not None:
        _check_layers(name, "decoder", layers, config.text_config.num_hidden_layers)
        config.text_config.num_hidden_layers = layers
        kinds = getattr(config.text_config, "layer_types", None)
        if kinds is not None:
            config.text_config.layer_types = kinds[:layers]
    if encoder_layers is not None:
        _cut_tower(name, config.vision_config, encoder_layers)
    return config


def _cut_tower(name: str, tower: Any, layers: int) -> None:
    field = "depth" if hasattr(tower, "depth") else "num_hidden_layers"
    _check_layers(name, "vision tower", layers, getattr(tower, field))
    setattr(tower, field, layers)
    for special in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if hasattr(tower, special):
            left = [layer for layer in getattr(tower, special) if layer < layers]
            setattr(tower, special, left or [layers - 1])


def _check_layers(name: str, part: str, asked: int, most: int) -> None:
    if not 1 <= asked <= most:
        raise VLMCompressError(
            f"the {part} of {name} has {most} layers: give 1 to {most}, not {asked}"
        )
