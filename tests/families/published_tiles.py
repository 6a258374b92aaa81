"""Checkpoints whose towers see pictures of one size: see `published`."""

from __future__ import annotations

from processor_folders import KINDS, Kind
from published import LLAVA, TOKEN, Published, text, tower


def _pinpoints(tile: int, most: int) -> list[list[int]]:
    return [[tile * h, tile * w] for h in range(1, most + 1) for w in range(1, most + 1)]


_CROP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
_NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

TILES: dict[str, Published] = {
    # 336 pixels in patches of 14.
    "llava-hf/llava-1.5-7b-hf": Published(
        "Llava",
        Kind(
            "llava",
            "LlavaProcessor",
            "CLIPImageProcessor",
            _CROP,
            placeholders=LLAVA,
            options={
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        {
            "vision_config": tower("clip_vision_model", 336, 14),
            "text_config": text("llama"),
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
            placeholders=LLAVA,
            options={
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        {
            "vision_config": tower("clip_vision_model", 336, 14),
            "text_config": text("llama"),
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
            placeholders=LLAVA,
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
            "vision_config": tower("siglip_vision_model", 384, 14, vision_use_head=False),
            "text_config": text("qwen2"),
            "image_token_index": TOKEN["<image>"],
            "video_token_index": TOKEN["<video>"],
            "image_grid_pinpoints": _pinpoints(384, 6),
            "vision_aspect_ratio": "anyres_max_9",
        },
        photo=27 * 27 + 40 * 54,
        separators=40,
        clip=8 * 14 * 14,
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
                **tower("internvl_vision", 448, 14),
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
            "text_config": text("qwen2"),
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
            placeholders=LLAVA,
            options={"image_seq_len": 81},
            videos={
                "video_processor_type": "SmolVLMVideoProcessor",
                "size": {"longest_edge": 384},
                "max_image_size": {"longest_edge": 384},
            },
        ),
        {
            "vision_config": tower("smolvlm_vision", 384, 14),
            "text_config": text("llama"),
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
            "vision_config": tower("siglip_vision_model", 896, 14, vision_use_head=False),
            "text_config": text(
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
    # 224 pixels in patches of 14; every frame of a clip has its CLS token, too, a separator.
    "LanguageBind/Video-LLaVA-7B-hf": Published(
        "VideoLlava",
        Kind(
            "video_llava",
            "VideoLlavaProcessor",
            "VideoLlavaImageProcessor",
            {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
            placeholders=LLAVA,
            options={
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        {
            "vision_config": tower("clip_vision_model", 224, 14),
            "text_config": text("llama"),
            "image_token_index": TOKEN["<image>"],
            "video_token_index": TOKEN["<video>"],
            "image_seq_length": 256,
            "video_seq_length": 8 * 257,
        },
        photo=16 * 16,
        clip=8 * 16 * 16,
    ),
}
