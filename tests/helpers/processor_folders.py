"""Folders that hold the processor of a model family and a tokenizer of a few words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    *("<pad>", "<unk>", "<eos>", "<image>", "<video>", "<|image_pad|>", "<|video_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
]
WORDS = ["what", "?", "which", "way", "User", ":", "Assistant"]

_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% elif c['type'] == 'video' %}VIDEO{% else %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
_QWEN = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
_LLAVA = "<image>", "<video>"
_PATCHES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}}
_CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


@dataclass(frozen=True)
class Kind:
    """What a folder of one family says."""

    model_type: str
    processor: str
    images: str
    settings: dict[str, Any]
    placeholders: tuple[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    """Of the processor."""
    videos: dict[str, Any] = field(default_factory=dict)
    """Of the video processor, where they have a file of their own."""
    named: dict[str, str] = field(default_factory=dict)
    """Attributes of the tokenizer that name special tokens."""


KINDS = {
    "qwen2_vl": Kind(
        "qwen2_vl", "Qwen2VLProcessor", "Qwen2VLImageProcessor", _PATCHES, placeholders=_QWEN
    ),
    "qwen2_5_vl": Kind(
        "qwen2_5_vl",
        "Qwen2_5_VLProcessor",
        "Qwen2VLImageProcessor",
        {"patch_size": 4, "merge_size": 2, "min_pixels": 256, "max_pixels": 4096},
        placeholders=_QWEN,
    ),
    "qwen3_vl": Kind(
        "qwen3_vl",
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        _PATCHES,
        placeholders=(_QWEN[0], "<|video_pad|>"),
        videos={
            "video_processor_type": "Qwen3VLVideoProcessor",
            "patch_size": 4,
            "size": {"shortest_edge": 256, "longest_edge": 24576},
        },
    ),
    "llava_onevision": Kind(
        "llava_onevision",
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        {"size": {"height": 32, "width": 32}, "image_grid_pinpoints": [[32, 32], [32, 64]]},
        placeholders=_LLAVA,
        options={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "llava_next_video": Kind(
        "llava_next_video",
        "LlavaNextVideoProcessor",
        "LlavaNextImageProcessor",
        _CROP | {"image_grid_pinpoints": [[32, 64], [64, 32]]},
        placeholders=_LLAVA,
        options={"patch_size": 8, "vision_feature_select_strategy": "default"}
        | {"num_additional_image_tokens": 1},
        videos=_CROP | {"video_processor_type": "LlavaNextVideoVideoProcessor"},
    ),
    "video_llava": Kind(
        "video_llava",
        "VideoLlavaProcessor",
        "VideoLlavaImageProcessor",
        _CROP,
        placeholders=_LLAVA,
        options={"patch_size": 8, "num_additional_image_tokens": 1},
    ),
    "internvl": Kind(
        "internvl",
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        {"size": {"height": 32, "width": 32}},
        placeholders=("<IMG_CONTEXT>", "<video>"),
        options={"image_seq_length": 4},
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "smolvlm": Kind(
        "smolvlm",
        "SmolVLMProcessor",
        "SmolVLMImageProcessor",
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}},
        placeholders=_LLAVA,
        options={"image_seq_len": 4},
    ),
    "glm4v": Kind(
        "glm4v",
        "Glm4vProcessor",
        "Glm4vImageProcessor",
        _PATCHES | {"size": {"shortest_edge": 256, "longest_edge": 40960}},
        placeholders=_QWEN,
        named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    ),
}


def tokenizer(named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Knows `SPECIAL` and `WORDS`."""
    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        extra_special_tokens=named,
    )


def write_folder(folder: Path, kind: Kind) -> Path:
    """Everything but the model."""
    folder.mkdir(exist_ok=True)
    tokenizer(kind.named).save_pretrained(folder)
    image, video = kind.placeholders
    template = _TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)
    (folder / "chat_template.jinja").write_text(template)
    files = {
        "config.json": {"model_type": kind.model_type},
        "processor_config.json": {"processor_class": kind.processor, **kind.options},
        "preprocessor_config.json": {"image_processor_type": kind.images, **kind.settings},
    }
    if kind.videos:
        files["video_preprocessor_config.json"] = kind.videos
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
