"""The tiny Qwen2.5-VL: its words, processor files and configuration."""

import json
from pathlib import Path
from typing import Any

from tokenizers import processors
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from dev.training.llava.model import SPECIAL as LLAVA_SPECIAL
from dev.training.llava.model import fill, make_word_tokenizer, replace_folder
from dev.training.llava.model import vocabulary as llava_vocabulary
from dev.training.qwen.data import MERGE
from vlmcompress.eval.worlds.clips import FRAMES_PER_SECOND, FRAMES_PER_STEP
from vlmcompress.eval.worlds.scene import CELL, IMAGE_SIZE, PATCH_SIZE

# The names that Qwen2.5-VL gives its special tokens.
SPECIAL = {
    "pad": "<|endoftext|>",
    "start": "<|im_start|>",
    "end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "unknown": "<|unk|>",
}
_CLIP_WORDS = (
    "way move moves direction up down appear appears first last after before that video clip "
    "time frame still"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }} : "
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|> "
    "{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
VISION_WIDTH = 128
TEXT_WIDTH = 160
# Positions in time are this far apart, so that a step differs clearly from a token of text.
TIME_INTERVAL = 2


def vocabulary() -> list[str]:
    """Every word that the model knows, in the order of its ids; tiny-llava's words among them."""
    old = [word for word in llava_vocabulary() if word not in LLAVA_SPECIAL]
    words = [*SPECIAL.values(), *old, *_CLIP_WORDS.split()]
    return list(dict.fromkeys(words))


IDS = {word: number for number, word in enumerate(vocabulary())}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower-cased; no token is added to a text."""
    return make_word_tokenizer(
        IDS,
        processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[]),
        bos_token=None,
        eos_token=SPECIAL["end"],
        unk_token=SPECIAL["unknown"],
        pad_token=SPECIAL["pad"],
        extra_special_tokens={
            "start_token": SPECIAL["start"],
            "image_token": SPECIAL["image"],
            "video_token": SPECIAL["video"],
            "vision_bos_token": SPECIAL["vision_start"],
            "vision_eos_token": SPECIAL["vision_end"],
        },
    )


def _processor_settings() -> dict[str, Any]:
    return {
        "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": FRAMES_PER_STEP,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def make_config() -> Qwen2_5_VLConfig:
    """A vision tower of 6 layers (4 windowed) and a Qwen2 decoder of 7 layers."""
    special: dict[str, Any] = {
        "pad_token_id": IDS[SPECIAL["pad"]],
        "bos_token_id": None,
        "eos_token_id": IDS[SPECIAL["end"]],
    }
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 6,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES_PER_STEP,
            "out_hidden_size": TEXT_WIDTH,
            # A window is one of the nine places of a picture.
            "window_size": CELL,
            "fullatt_block_indexes": [2, 5],
            "tokens_per_second": TIME_INTERVAL * FRAMES_PER_SECOND // FRAMES_PER_STEP,
        },
        text_config={
            "vocab_size": len(IDS),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 432,
            "num_hidden_layers": 7,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 2048,
            "initializer_range": TEXT_WIDTH**-0.5,
            "rms_norm_eps": 1e-6,
            # Six rows and columns: a large base or the usual sections would hardly turn them.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "mrope_section": [2, 2, 12],
            },
            "tie_word_embeddings": True,
            **special,
        },
        image_token_id=IDS[SPECIAL["image"]],
        video_token_id=IDS[SPECIAL["video"]],
        vision_start_token_id=IDS[SPECIAL["vision_start"]],
        vision_end_token_id=IDS[SPECIAL["vision_end"]],
        tie_word_embeddings=True,
        **special,
    )


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the model folder.

    Args:
        weights: float32 state of `Qwen2_5_VLForConditionalGeneration`.
        folder: Where it goes; files of the same names are replaced.
    """
    model = Qwen2_5_VLForConditionalGeneration(make_config())
    fill(model, weights)
    model.generation_config = GenerationConfig(
        eos_token_id=IDS[SPECIAL["end"]], pad_token_id=IDS[SPECIAL["pad"]], do_sample=False
    )
    replace_folder(folder, model, make_tokenizer(), ProcessorFiles())


class ProcessorFiles:
    """The files beside model and tokenizer that make `Qwen2_5_VLProcessor`.

    They are written by hand: neither that class nor the video processor can be made without
    torchvision, which nothing else here needs.
    """

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings of both processors and the chat template."""
        shared = _processor_settings() | {
            "processor_class": "Qwen2_5_VLProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "rescale_factor": 1 / 255,
            "resample": 3,
        }
        files = {
            "preprocessor_config.json": shared | {"image_processor_type": "Qwen2VLImageProcessor"},
            "video_preprocessor_config.json": shared
            | {
                "video_processor_type": "Qwen2VLVideoProcessor",
                "do_sample_frames": False,
                "cap_pixels_per_frame": False,
            },
        }
        for name, settings in files.items():
            (folder / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
