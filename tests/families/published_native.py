"""Checkpoints whose towers see pictures in their own shape: see `published`."""

from __future__ import annotations

from processor_folders import KINDS, Kind
from published import QWEN, TOKEN, VOCABULARY, Published, mrope, text, tower

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


NATIVE: dict[str, Published] = {
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
            placeholders=QWEN,
        ),
        {
            "vision_config": {
                **_QWEN_TOWER,
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [1],
            },
            "text_config": text("qwen2_5_vl_text", rope_parameters=mrope(2, 3, 3)),
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
            "text_config": text(
                "qwen3_vl_text", rope_parameters=mrope(2, 3, 3, mrope_interleaved=True)
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
            "text_config": text(
                "qwen3_5_text",
                rope_parameters=mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25),
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
            "vision_config": tower(
                "gemma4_vision",
                768,
                16,
                num_key_value_heads=2,
                head_dim=8,
                pooling_kernel_size=3,
                default_output_length=280,
                position_embedding_size=256,
            ),
            "text_config": text(
                "gemma4_text",
                sliding_window=512,
                layer_types=["sliding_attention", "full_attention"],
                global_head_dim=16,
                num_kv_shared_layers=0,
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=VOCABULARY,
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
            placeholders=QWEN,
            named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        ),
        {
            "vision_config": {
                "model_type": "glm4v_vision",
                **_QWEN_TOWER,
                "patch_size": 14,
                "image_size": 336,
            },
            "text_config": text("glm4v_text", rope_parameters=mrope(2, 3, 3)),
            "image_token_id": TOKEN["<|image_pad|>"],
            "video_token_id": TOKEN["<|video_pad|>"],
            "image_start_token_id": TOKEN["<|vision_start|>"],
            "image_end_token_id": TOKEN["<|vision_end|>"],
        },
        photo=17 * 23,
    ),
}
