"""Published checkpoints in their real geometry and tiny widths, with their processors.

Sizes of pictures, patches, merges and tiles are those of the model cards; so are the classes. Widths
and depths change no count and are cut. The number of tokens of a photograph of 640x480 pixels, and
of a clip of 8 such frames, is written out as the papers and cards count it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from processor_folders import KINDS, SPECIAL, Kind, write_folder

TOKEN = {name: number for number, name in enumerate(SPECIAL)}
_LLAVA = "<image>", "<video>"
_QWEN = KINDS["qwen2_5_vl"].placeholders
_VOCABULARY = 64


def _text(kind: str, **more: Any) -> dict[str, Any]:
    """A decoder of two layers."""
    return {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": _VOCABULARY,
        "pad_token_id": 0,
        **more,
    }


def _tower(kind: str, image: int, patch: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        "projection_dim": 16,
        **more,
    }


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}


@dataclass(frozen=True)
class Published:
    """One checkpoint."""

    cls: str
    kind: Kind
    config: dict[str, Any]
    photo: int
    """Visual tokens of a photograph; separators are none."""
    clip: int | None = None
    """Of a clip; None where the model takes none, or its video processor needs torchvision."""
    separators: int = 0
    """Beside the tokens of the photograph."""


def _pinpoints(tile: int, most: int) -> list[list[int]]:
    return [[tile * h, tile * w] for h in range(1, most + 1) for w in range(1, most + 1)]


_CROP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
_NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_QWEN_TOKENS = {
    "image_token_id": TOKEN["<|image_pad|>"],
    "video_token_id": TOKEN["<|video_pad|>"],
    "vision_start_token_id": TOKEN["<|vision_start|>"],
    "vision_end_token_id": TOKEN["<|vision_end|>"],
}
_QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN3_SIZES = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16}
_QWEN3_CLIPS = {
    "video_processor_type": "Qwen3VLVideoProcessor",
    "size": {"shortest_edge": 4096, "longest_edge": 25165824},
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN3_TOWER = {**_QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 2304}


def _qwen3(model_type: str) -> Kind:
    return Kind(
        model_type,
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        {**_QWEN3_SIZES, "merge_size": 2, "temporal_patch_size": 2},
        placeholders=KINDS["qwen3_vl"].placeholders,
        videos=_QWEN3_CLIPS,
    )


PUBLISHED: dict[str, Published] = {
    # 336 pixels in patches of 14.
    "llava-hf/llava-1.5-7b-hf": Published(
        "Llava",
        Kind(
            "llava",
            "LlavaProcessor",
            "CLIPImageProcessor",
            _CROP,
            placeholders=_LLAVA,
            options={
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        {
            "vision_config": _tower("clip_vision_model", 336, 14),
            "text_config": _text("llama"),
            "image_token_index": TOKEN["<image>"],
        },
        photo=24 * 24,
    ),
    # An overview, and 2x2 tiles that keep 3/4 of their rows: the photograph is 3/4 as high as wide.
    "llava-hf/llava-v1.6-vicuna-7b-hf": Published(
        "LlavaNext",
        Kind(
            "llava_next",
            "LlavaNextProcessor",
            "LlavaNextImageProcessor",
            {**_CROP, "image_grid_pinpoints": _NEXT},
            placeholders=_LLAVA,
            options={
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        {
            "vision_config": _tower("clip_vision_model", 336, 14),
            "text_config": _text("llama"),
            "image_token_index": TOKEN["<image>"],
            "image_grid_pinpoints": _NEXT,
        },
        photo=24 * 24 + (2 * 24) * 3 // 4 * (2 * 24),
        separators=2 * 24 * 3 // 4,
    ),
    # An overview of 27x27, and 2x2 tiles: 54 columns, of 54 rows those of a height of 40.5, less
    # the padding of (54 - 40) // 2 on both sides. Frames of a clip are halved to 14x14.
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": Published(
        "LlavaOnevision",
        Kind(
            "llava_onevision",
            "LlavaOnevisionProcessor",
            "LlavaOnevisionImageProcessor",
            {
                "size": {"height": 384, "width": 384},
                "image_grid_pinpoints": _pinpoints(384, 6),
            },
            placeholders=_LLAVA,
            options={
                "num_image_tokens": 27 * 27,
                "vision_feature_select_strategy": "full",
                "vision_aspect_ratio": "anyres_max_9",
            },
            videos={
                "video_processor_type": "LlavaOnevisionVideoProcessor",
                "size": {"height": 384, "width": 384},
            },
        ),
        {
            "vision_config": _tower("siglip_vision_model", 384, 14, vision_use_head=False),
            "text_config": _text("qwen2"),
            "image_token_index": TOKEN["<image>"],
            "video_token_index": TOKEN["<video>"],
            "image_grid_pinpoints": _pinpoints(384, 6),
            "vision_aspect_ratio": "anyres_max_9",
        },
        photo=27 * 27 + 40 * 54,
        separators=40,
        clip=8 * 14 * 14,
    ),
    # Sides are rounded to 28 pixels: 17x23 tokens. Two frames make one.
    "Qwen/Qwen2.5-VL-7B-Instruct": Published(
        "Qwen2_5_VL",
        Kind(
            "qwen2_5_vl",
            "Qwen2_5_VLProcessor",
            "Qwen2VLImageProcessor",
            {
                "patch_size": 14,
                "merge_size": 2,
                "temporal_patch_size": 2,
                "min_pixels": 3136,
                "max_pixels": 12845056,
            },
            placeholders=_QWEN,
        ),
        {
            "vision_config": {
                **_QWEN_TOWER,
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [1],
            },
            "text_config": _text("qwen2_5_vl_text", rope_parameters=_mrope(2, 3, 3)),
            **_QWEN_TOKENS,
        },
        photo=17 * 23,
        clip=8 // 2 * 17 * 23,
    ),
    # Sides are rounded to 32 pixels: 15x20 tokens.
    "Qwen/Qwen3-VL-4B-Instruct": Published(
        "Qwen3VL",
        _qwen3("qwen3_vl"),
        {
            "vision_config": {**_QWEN3_TOWER, "deepstack_visual_indexes": [0]},
            "text_config": _text(
                "qwen3_vl_text", rope_parameters=_mrope(2, 3, 3, mrope_interleaved=True)
            ),
            **_QWEN_TOKENS,
        },
        photo=15 * 20,
        clip=8 // 2 * 15 * 20,
    ),
    "Qwen/Qwen3.5-4B": Published(
        "Qwen3_5",
        _qwen3("qwen3_5"),
        {
            "vision_config": _QWEN3_TOWER,
            "text_config": _text(
                "qwen3_5_text",
                rope_parameters=_mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25),
                layer_types=["linear_attention", "full_attention"],
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=2,
            ),
            **_QWEN_TOKENS,
        },
        photo=15 * 20,
        clip=8 // 2 * 15 * 20,
    ),
    # 4x3 tiles of 448 pixels and an overview; 32x32 patches of each are shuffled into 16x16.
    "OpenGVLab/InternVL3-2B-hf": Published(
        "InternVL",
        Kind(
            "internvl",
            "InternVLProcessor",
            "GotOcr2ImageProcessor",
            {
                "size": {"height": 448, "width": 448},
                "crop_to_patches": True,
                "min_patches": 1,
                "max_patches": 12,
            },
            placeholders=KINDS["internvl"].placeholders,
            options={"image_seq_length": 256},
            named=KINDS["internvl"].named,
            videos={
                "video_processor_type": "InternVLVideoProcessor",
                "size": {"height": 448, "width": 448},
            },
        ),
        {
            "vision_config": {
                **_tower("internvl_vision", 448, 14),
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
            "text_config": _text("qwen2"),
            "image_token_id": TOKEN["<IMG_CONTEXT>"],
            "downsample_ratio": 0.5,
        },
        photo=(4 * 3 + 1) * 16 * 16,
        clip=8 * 16 * 16,
    ),
    # The longest side becomes 1536: 4x3 tiles of 384 and an overview, 27x27 patches shuffled 3x3.
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": Published(
        "SmolVLM",
        Kind(
            "smolvlm",
            "SmolVLMProcessor",
            "SmolVLMImageProcessor",
            {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
            placeholders=_LLAVA,
            options={"image_seq_len": 81},
            videos={
                "video_processor_type": "SmolVLMVideoProcessor",
                "size": {"longest_edge": 384},
                "max_image_size": {"longest_edge": 384},
            },
        ),
        {
            "vision_config": _tower("smolvlm_vision", 384, 14),
            "text_config": _text("llama"),
            "image_token_id": TOKEN["<image>"],
            "scale_factor": 3,
        },
        photo=(4 * 3 + 1) * 9 * 9,
        clip=8 * 9 * 9,
    ),
    # 896 pixels in patches of 14 are 64x64, pooled 4x4.
    "google/gemma-3-4b-it": Published(
        "Gemma3",
        Kind(
            "gemma3",
            "Gemma3Processor",
            "Gemma3ImageProcessor",
            {"size": {"height": 896, "width": 896}},
            placeholders=("<img>", "<video>"),
            options={"image_seq_length": 256},
            named={"image_token": "<image>", "boi_token": "<img>", "eoi_token": "</img>"},
        ),
        {
            "vision_config": _tower("siglip_vision_model", 896, 14, vision_use_head=False),
            "text_config": _text(
                "gemma3_text",
                sliding_window=1024,
                layer_types=["sliding_attention", "full_attention"],
            ),
            "mm_tokens_per_image": 256,
            "image_token_index": TOKEN["<image>"],
            "boi_token_index": TOKEN["<img>"],
            "eoi_token_index": TOKEN["</img>"],
        },
        photo=256,
    ),
    # As many pixels as 280 tokens of 3x3 patches of 16 have, 645120, in the shape of the photograph
    # are 695x927; their sides are rounded down to 48: 14x19.
    "google/gemma-4-E4B-it": Published(
        "Gemma4",
        Kind(
            "gemma4",
            "Gemma4Processor",
            "Gemma4ImageProcessor",
            {"patch_size": 16, "max_soft_tokens": 280, "pooling_kernel_size": 3},
            placeholders=("<image>", "<video>"),
            options={
                "image_seq_length": 280,
                "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
            },
            named={
                "image_token": "<image>",
                "boi_token": "<img>",
                "eoi_token": "</img>",
                "audio_token": "<audio>",
                "boa_token": "<sound>",
                "eoa_token": "</sound>",
            },
        ),
        {
            "vision_config": _tower(
                "gemma4_vision",
                768,
                16,
                num_key_value_heads=2,
                head_dim=8,
                pooling_kernel_size=3,
                default_output_length=280,
                position_embedding_size=256,
            ),
            "text_config": _text(
                "gemma4_text",
                sliding_window=512,
                layer_types=["sliding_attention", "full_attention"],
                global_head_dim=16,
                num_kv_shared_layers=0,
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=_VOCABULARY,
            ),
            "audio_config": None,
            "image_token_id": TOKEN["<image>"],
            "video_token_id": TOKEN["<video>"],
            "boi_token_id": TOKEN["<img>"],
            "eoi_token_id": TOKEN["</img>"],
        },
        photo=14 * 19,
    ),
    "zai-org/GLM-4.6V": Published(
        "Glm46V",
        Kind(
            "glm46v",
            "Glm46VProcessor",
            "Glm46VImageProcessor",
            {
                "patch_size": 14,
                "merge_size": 2,
                "temporal_patch_size": 2,
                "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000},
            },
            placeholders=_QWEN,
            named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        ),
        {
            "vision_config": {
                "model_type": "glm4v_vision",
                **_QWEN_TOWER,
                "patch_size": 14,
                "image_size": 336,
            },
            "text_config": _text("glm4v_text", rope_parameters=_mrope(2, 3, 3)),
            "image_token_id": TOKEN["<|image_pad|>"],
            "video_token_id": TOKEN["<|video_pad|>"],
            "image_start_token_id": TOKEN["<|vision_start|>"],
            "image_end_token_id": TOKEN["<|vision_end|>"],
        },
        photo=17 * 23,
    ),
    # 224 pixels in patches of 14; every frame of a clip has its CLS token, too, a separator.
    "LanguageBind/Video-LLaVA-7B-hf": Published(
        "VideoLlava",
        Kind(
            "video_llava",
            "VideoLlavaProcessor",
            "VideoLlavaImageProcessor",
            {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
            placeholders=_LLAVA,
            options={
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        {
            "vision_config": _tower("clip_vision_model", 224, 14),
            "text_config": _text("llama"),
            "image_token_index": TOKEN["<image>"],
            "video_token_index": TOKEN["<video>"],
            "image_seq_length": 256,
            "video_seq_length": 8 * 257,
        },
        photo=16 * 16,
        clip=8 * 16 * 16,
    ),
}


def write_checkpoint(folder: Path, published: Published) -> Path:
    """Processor, configuration and random weights, as a folder of the hub has them."""
    write_folder(folder, published.kind)
    config = getattr(transformers, f"{published.cls}Config")(**published.config)
    torch.manual_seed(0)
    cls = getattr(transformers, f"{published.cls}ForConditionalGeneration")
    cls._from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
