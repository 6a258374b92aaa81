"""Small models with random weights of families that have no built-in one, as folders for vLLM."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import processor_folders as folders
import torch
import transformers

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}
_SPECIAL = {name: number for number, name in enumerate(folders.SPECIAL)}
_MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
_QWEN = {
    "image_token_id": _SPECIAL["<|image_pad|>"],
    "video_token_id": _SPECIAL["<|video_pad|>"],
    "vision_start_token_id": _SPECIAL["<|vision_start|>"],
    "vision_end_token_id": _SPECIAL["<|vision_end|>"],
}
_QWEN_TOWER = {"depth": 3, "patch_size": 4, "num_heads": 2, "spatial_merge_size": 2}
_SEEN = dict(zip(("image", "clip"), folders._QWEN, strict=True))
_QWEN_CLIPS = {
    "video_processor_type": "Qwen2VLVideoProcessor",
    "patch_size": 4,
    "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 24576},
}
_LLAVA_TILES = {"image_token_index": _SPECIAL["<image>"], "vision_feature_layer": -2}


@dataclass(frozen=True)
class RandomModel:
    """How to make one."""

    kind: folders.Kind
    config: dict[str, Any]
    class_name: str
    kinds: dict[str, str]
    """"image" and "clip", as far as they are pruned -> what stands for one in a prompt."""
    size: tuple[int, int] = (44, 40)
    """Width and height of the pictures that it is asked about."""
    scale: float = 1.5
    """Of its weights: so large that pictures matter to the answers."""
    newlines: bool = False
    """Whether rows of pictures end with one."""
    together: tuple[str, ...] = ("image", "clip")
    """Kinds of which a prompt may hold several: there the bare models answer alike, too."""


def _next(pinpoints: list[list[int]]) -> folders.Kind:
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return folders.Kind(
        "llava_next",
        "LlavaNextProcessor",
        "LlavaNextImageProcessor",
        crop | {"image_grid_pinpoints": pinpoints},
        placeholders=("<image>", "<video>"),
        options={"patch_size": 4, "vision_feature_select_strategy": "default"}
        | {"num_additional_image_tokens": 1},
    )


_PINPOINTS = [[32, 64], [64, 32], [64, 64]]
_NORMS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
_NORMS |= {"do_rescale": True, "do_normalize": True}
"""Written out, as checkpoints do: without, vLLM leaves pixels as they are."""


def _normed(kind: folders.Kind) -> folders.Kind:
    videos = kind.videos and kind.videos | _NORMS
    return replace(kind, settings=kind.settings | _NORMS, videos=videos)


MODELS: dict[str, RandomModel] = {
    "Qwen2-VL": RandomModel(
        _normed(replace(folders.KINDS["qwen2_vl"], videos=_QWEN_CLIPS)),
        _QWEN
        | {
            "text_config": TEXT | {"rope_parameters": _MROPE},
            "vision_config": _QWEN_TOWER | {"embed_dim": 64, "hidden_size": 64},
        },
        "Qwen2VLForConditionalGeneration",
        _SEEN,
        size=(80, 48),
    ),
    "Qwen3-VL": RandomModel(
        _normed(folders.KINDS["qwen3_vl"]),
        _QWEN
        | {
            "text_config": TEXT | {"rope_parameters": _MROPE | {"mrope_interleaved": True}},
            "vision_config": _QWEN_TOWER
            | {
                "hidden_size": 64,
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "num_position_embeddings": 144,
                "deepstack_visual_indexes": [0, 1],
            },
        },
        "Qwen3VLForConditionalGeneration",
        _SEEN,
        size=(80, 48),
    ),
    "LLaVA-NeXT": RandomModel(
        _next(_PINPOINTS),
        _LLAVA_TILES
        | {
            "vision_config": TOWER | {"model_type": "clip_vision_model", "projection_dim": 16},
            "text_config": TEXT | {"model_type": "llama"},
            "image_grid_pinpoints": _PINPOINTS,
        },
        "LlavaNextForConditionalGeneration",
        {"image": "<image>"},
        scale=3.0,
        newlines=True,
    ),
    "LLaVA-OneVision": RandomModel(
        folders.Kind(
            "llava_onevision",
            "LlavaOnevisionProcessor",
            "LlavaOnevisionImageProcessor",
            {"size": {"height": 32, "width": 32}, "image_grid_pinpoints": _PINPOINTS},
            placeholders=("<image>", "<video>"),
            options={"num_image_tokens": 64, "vision_feature_select_strategy": "full"},
            videos={
                "video_processor_type": "LlavaOnevisionVideoProcessor",
                "size": {"height": 32, "width": 32},
            },
        ),
        {
            "image_token_index": _SPECIAL["<image>"],
            "video_token_index": _SPECIAL["<video>"],
            "vision_feature_layer": -1,
            "vision_config": TOWER
            | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "text_config": TEXT | {"model_type": "qwen2"},
            "image_grid_pinpoints": _PINPOINTS,
        },
        "LlavaOnevisionForConditionalGeneration",
        {"image": "<image>", "clip": "<video>"},
        together=("clip",),
        scale=3.0,
        newlines=True,
    ),
    "InternVL": RandomModel(
        folders.Kind(
            "internvl",
            "InternVLProcessor",
            "GotOcr2ImageProcessor",
            {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "max_patches": 3},
            placeholders=("<IMG_CONTEXT>", "<video>"),
            options={"image_seq_length": 16},
            named=folders.KINDS["internvl"].named,
        ),
        {
            "vision_config": TOWER
            | {"model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [4, 4]},
            "text_config": TEXT | {"model_type": "qwen2"},
            "image_token_id": _SPECIAL["<IMG_CONTEXT>"],
            "image_seq_length": 16,
        },
        "InternVLForConditionalGeneration",
        {"image": "<IMG_CONTEXT>"},
        size=(96, 32),
    ),
}


def _know_digits(folder: Path) -> None:
    """So that timestamps between frames are told apart."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words |= {digit: len(words) + number for number, digit in enumerate("0123456789")}
    path.write_text(json.dumps(content))


def write(folder: Path, name: str) -> Path:
    """The model and its processor in a folder, as transformers saves them."""
    made = MODELS[name]
    folders.write_folder(folder, made.kind)
    (folder / "config.json").unlink()
    _know_digits(folder)
    torch.manual_seed(0)
    cls = getattr(transformers, made.class_name)
    model = cls(cls.config_class(**made.config))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # as large as layers keep values, so that pictures matter
            fan = parameter[0].numel()
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=generator) * made.scale * fan**-0.5
            )
        else:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [made.class_name]
    return folder
