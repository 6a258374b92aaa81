"""Folders of tiny models of today, as `save_pretrained` writes them: weights, tokenizer, processor.

Their processors are transformers' own; only sizes of pictures are small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shrink import VOCABULARY, build
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", ":", "what", "is", "this", "?"]
_QWEN = {"size": {"shortest_edge": 96 * 96, "longest_edge": 128 * 128}}
_QWEN_VIDEO = {"size": {"shortest_edge": 64 * 64, "longest_edge": 8 * 128 * 128}}
_QWEN_MARKS = ("<|vision_start|>{}<|vision_end|>",) * 2


@dataclass(frozen=True)
class Folder:
    """What a folder of one type holds beside the weights."""

    processor: str
    images: str
    tokens: dict[str, str]
    """Name of a token id in the configuration -> the token."""
    named: dict[str, str]
    """Attributes of the tokenizer -> tokens."""
    picture: str
    """What the chat template writes for an image."""
    clip: str | None = None
    """For a clip; None where the processor takes none without torchvision."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the image processor."""
    videos: dict[str, Any] = field(default_factory=dict)
    """Of the video processor."""
    sounds: dict[str, Any] | None = None
    """Of the feature extractor, where the processor has one."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the processor."""
    torchvision: bool = False
    """Whether the processor of transformers needs it."""


_VISION = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
_PADS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
_NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
_SEEN = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"

FOLDERS = {
    "qwen3_5": Folder(
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        _PADS | _VISION,
        _NAMED | {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"},
        picture=_SEEN[0],
        clip="<|video_pad|>",
        settings={"patch_size": 16, **_QWEN},
        videos={"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16, **_QWEN_VIDEO},
    ),
    "qwen3_omni_moe_thinker": Folder(
        "Qwen3OmniMoeProcessor",
        "Qwen2VLImageProcessor",
        _PADS
        | _VISION
        | {"audio_token_id": "<|audio_pad|>", "audio_start_token_id": "<|audio_start|>"},
        _NAMED
        | {"audio_token": "<|audio_pad|>"}
        | {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
        | {"audio_bos_token": "<|audio_start|>", "audio_eos_token": "<unk>"},
        picture=_SEEN[0],
        clip=_SEEN[1],
        settings={"patch_size": 16, **_QWEN},
        videos={"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 16, **_QWEN_VIDEO},
        sounds={"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128},
    ),
    "glm46v": Folder(
        "Glm46VProcessor",
        "Glm46VImageProcessor",
        {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
        {"image_token": "<|image|>", "video_token": "<|video|>"},
        picture="<|begin_of_image|><|image|><|end_of_image|>",
        clip="<|begin_of_video|><|video|><|end_of_video|>",
        settings={
            "patch_size": 14,
            "size": {"shortest_edge": 112 * 112, "longest_edge": 2 * 112**2},
        },
        videos={
            "video_processor_type": "Glm46VVideoProcessor",
            "size": {"shortest_edge": 56**2, "longest_edge": 8 * 112**2},
        },
    ),
    "gemma4": Folder(
        "Gemma4Processor",
        "Gemma4ImageProcessor",
        {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "audio_token_id": "<|audio|>",
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "boa_token_id": "<|audio>",
            "eoa_token_index": "<audio|>",
        },
        {
            "image_token": "<|image|>",
            "audio_token": "<|audio|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        picture="<|image|>",
        settings={"max_soft_tokens": 70},
        sounds={"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    ),
    "llama4": Folder(
        "Llama4Processor",
        "Llama4ImageProcessor",
        {
            "boi_token_index": "<|image_start|>",
            "eoi_token_index": "<|image_end|>",
            "image_token_index": "<|patch|>",
        },
        {},
        picture="<|image|>",
        settings={"size": {"height": 112, "width": 112}, "max_patches": 4},
        options={"patch_size": 14, "pixel_shuffle_ratio": 0.5},
        torchvision=True,
    ),
}

_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}CLIP"
    "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save(folder: Path, model_type: str) -> Path:
    """Write a model with its processor."""
    about, model = FOLDERS[model_type], build(model_type, "sdpa")
    model.generation_config.update(eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    _tokenizer(model.config, about).save_pretrained(folder)
    template = _TEMPLATE.replace("IMAGE", about.picture).replace("CLIP", about.clip or "")
    (folder / "chat_template.jinja").write_text(template)
    named = {"processor_class": about.processor}
    sounds = {} if about.sounds is None else about.sounds
    files = {
        "processor_config.json": {**named, **about.options},
        "preprocessor_config.json": {"image_processor_type": about.images, **sounds, **named}
        | about.settings,
    }
    if about.videos:
        files["video_preprocessor_config.json"] = about.videos
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _tokenizer(config: Any, about: Folder) -> PreTrainedTokenizerFast:
    """Knows `WORDS`, the special tokens where the configuration says, and other words."""
    special = {getattr(config, name): token for name, token in about.tokens.items()}
    known = dict(enumerate(WORDS)) | special
    loose = {"<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|video|>"}
    loose -= set(special.values())
    free = iter(number for number in range(VOCABULARY - 20, VOCABULARY) if number not in known)
    known |= {next(free): token for token in sorted(loose)}
    words = {known.get(n, f"w{n}"): n for n in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([*WORDS[:4], *special.values(), *sorted(loose)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=about.named,
    )
