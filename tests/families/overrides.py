"""What `shrink` cannot guess: values by dotted name, for types that need some."""

from __future__ import annotations

from typing import Any

DROP = object()
"""Instead of a value: leave the field out."""
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_SAM = {
    "vision_config.sam_config.downsample_channels": [16, 32],
    "vision_config.sam_config.output_channels": 16,
    "vision_config.sam_config.num_hidden_layers": 1,
}
_OMNI = {"vision_start_token_id": 290, "vision_end_token_id": 291}
_IMAGE_VIDEO = {"image_token_id": 210, "video_token_id": 211}
_DEEPSEEK_HEADS = {"text_config.head_dim": 8, "text_config.num_key_value_heads": 4}
_DENSE = 96
"""Tokens that sparse attention selects: all of a prompt."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"set": {"projector_patch_to_query_dict": {"64": 16}}},
    "cohere2_vision": {"set": {"alignment_intermediate_size": 64}},
    "cohere_compass": {
        "set": {
            "text_config.rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
            "text_config.logit_scale": 1.0,
            "text_config.num_attention_heads": 4,
        }
    },
    "deepseek_ocr2": {
        "set": {
            **_SAM,
            "text_config.mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "text_config.num_experts_per_tok": 2,
            "text_config.num_key_value_heads": 4,
            "vision_config.encoder_config.sliding_window": None,
        }
    },
    "dots3_note": {
        "set": {
            "text_config.num_key_value_heads": 4,
            "text_config.index_topk": _DENSE,
            "vision_config.mlp_layer_types": ["dense", "dense"],
            "vision_config.per_layer_config": DROP,
            "vision_config.adapter_in_dim": 32,
            "vision_config.adapter_out_dim": 32,
            "vision_config.adapter_input_size": 32,
            "audio_config.adapter_input_size": 32,
            "audio_config.adapter_output_size": 32,
        }
    },
    "ernie4_5_vl_moe": {
        "set": {
            "text_config.head_dim": 16,
            "text_config.rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
            "text_config.moe_intermediate_size": [16, 8],
            "vision_config.num_heads": 2,
        }
    },
    "fuyu": {"set": {"patch_size": 6}},
    "gemma3": {
        "set": {
            "mm_tokens_per_image": 16,
            "vision_config.image_size": 112,
            "vision_config.patch_size": 14,
        }
    },
    "gemma3n": {
        "set": {
            "vision_soft_tokens_per_image": 64,
            "text_config.num_kv_shared_layers": 0,
            "text_config.activation_sparsity_pattern": [0.0] * 4,
            "text_config.intermediate_size": 64,
        }
    },
    "gemma4": {
        "vision": True,
        "set": {
            "text_config.use_bidirectional_attention": "vision",
            "text_config.num_kv_shared_layers": 0,
            "vision_config.position_embedding_size": 64,
            "vision_config.head_dim": 16,
            "vision_config.num_attention_heads": 2,
            "vision_config.num_key_value_heads": 2,
        },
    },
    "gemma4_unified": {
        "vision": True,
        "set": {
            "vision_config.mm_embed_dim": 32,
            "vision_config.output_proj_dims": 32,
            "vision_config.mm_posemb_size": 64,
            "vision_config.patch_size": 4,
        },
    },
    "glm5_next": {
        "set": {
            "text_config.num_key_value_heads": 4,
            "text_config.index_topk": _DENSE,
            "text_config.linear_head_dim": 8,
            "text_config.linear_num_heads": 4,
        }
    },
    "granite4_vision": {
        "set": {
            "downsample_rate": "1/2",
            "deepstack_layer_map": [(-2, 3), (-1, 0)],
            "spatial_target_layers": [1, 2, 4, 5],
            "text_config.num_hidden_layers": 6,
            "vision_config.patch_size": 14,
            "vision_config.image_size": 112,
            "vision_config.hidden_size": 64,
            "qformer_config.hidden_size": 64,
            "qformer_config.encoder_hidden_size": 64,
            "image_seq_length": 16,
            "image_grid_pinpoints": [[112, 224], [224, 112], [224, 224]],
        }
    },
    "hunyuan_vl": {
        "set": {
            "text_config.head_dim": 16,
            "text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]},
        }
    },
    "hy_v4_vl": {
        "set": {
            "text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]},
            "text_config.num_key_value_heads": 4,
            "text_config.head_dim": 16,
            "text_config.index_topk": _DENSE,
        }
    },
    "kimi_k25": {"set": {**_DEEPSEEK_HEADS, "projection_hidden_size": 32}},
    "lfm2_vl": {
        "set": {"text_config.layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    },
    "llama4": {
        "set": {
            "vision_config.pixel_shuffle_ratio": 0.5,
            "vision_config.intermediate_size": 128,
            "vision_config.projector_input_dim": 32,
            "vision_config.projector_output_dim": 32,
            "vision_config.vision_output_dim": 32,
        }
    },
    # Past the tower's depth the second merge never runs, but sizes are halved all the same.
    "minicpmv4_6": {"set": {**_IMAGE_VIDEO, "insert_layer_id": 0}},
    "minicpmv4_7": {"set": {**_IMAGE_VIDEO, "insert_layer_id": 0}},
    "minicpm_ocr": {"set": _IMAGE_VIDEO},
    "mistral_large4": {"set": {**_DEEPSEEK_HEADS, "text_config.index_topk": _DENSE}},
    "molmo2": {
        "set": {
            "image_patch_id": 210,
            "image_start_token_id": 211,
            "image_end_token_id": 212,
            "adapter_config.vision_feature_layer": [1, 0],
            "vision_config.num_position_embeddings": 64,
            "vision_config.image_size": [112, 112],
        }
    },
    "muse_glimmer": {"set": {"out_hidden_size": 128, "projector_hidden_size": 32}},
    "muse_spark": {"set": {"out_hidden_size": 128, "projector_hidden_size": 32}},
    "nemotron_h_omni": {
        "set": {
            **_IMAGE_VIDEO,
            "audio_token_id": 212,
            "text_config.layer_types": ["full_attention", "mamba", "full_attention", "mlp"],
        }
    },
    "perception_lm": {"set": {"vision_config.model_args": {"embed_dim": 32}}},
    "qwen2_5_omni_thinker": {"set": _OMNI},
    "qwen3_omni_moe_thinker": {"set": _OMNI},
    "qwen4_exp": {
        "set": {
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 16,
            "text_config.indexer_budget": _DENSE,
            "text_config.indexer_compress_ratio": 4,
            "text_config.eos_token_id": 2,
            "text_config.pad_token_id": 0,
            "text_config.ple_layer_ids": [3],
            "text_config.ple_embed_dim": 32,
            "text_config.heads_per_ngram": 2,
            "text_config.ngram_vocab_size_base": 512,
            "text_config.number_of_conv_states": 3,
            "text_config.hc_lowrank": 8,
            "text_config.split_ngram_parts": 2,
            "text_config.rope_parameters": {
                **_ROPE,
                "mrope_section": [1, 1, 0],
                "partial_rotary_factor": 0.5,
            },
        }
    },
    "step3p7": {"set": {"text_config.sliding_window": 12}},
    "unlimited_ocr": {
        "set": {**_SAM, "text_config.num_key_value_heads": 4, "text_config.num_attention_heads": 4}
    },
}
OVERRIDES["vipllava"] = {"set": {"vision_feature_layers": [-1, -2]}}
OVERRIDES["shieldgemma2"] = OVERRIDES["gemma3"]
