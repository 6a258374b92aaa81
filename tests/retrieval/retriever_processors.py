"""Processors of the tiny retrievers: whole words, pictures of the sizes that they take."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from retrievers import IMAGE
from tokenizers import processors as tokenizers_processors
from transformers import SiglipImageProcessorPil
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from dev.training.llava.model import make_word_tokenizer

WORDS = ["red", "green", "blue", "star", "circle", "page", "figure", "of", "and", "the", "a"]


def _tokenizer(special: dict[str, int], **named: Any) -> Any:
    fixed = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, **special}
    free = iter(sorted(set(range(IMAGE + 1)) - set(fixed.values())))
    ids = fixed | {word: next(free) for word in WORDS}
    ids |= {f"<filler{number}>": number for number in free}
    plain = tokenizers_processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return make_word_tokenizer(
        ids,
        plain,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        **named,
    )


def _kind(name: str) -> Any:
    return getattr(transformers, PROCESSOR_MAPPING_NAMES[name])


@lru_cache
def processor(name: str) -> Any:
    """The processor of one of `retrievers.NAMES`."""
    if name.startswith("colqwen2"):
        from transformers import Qwen2VLImageProcessorPil

        pictures = Qwen2VLImageProcessorPil(
            patch_size=4, temporal_patch_size=2, merge_size=2, min_pixels=64, max_pixels=64 * 20
        )
        marks = {"<|vision_start|>": 97, "<|vision_end|>": 96, "<|image_pad|>": IMAGE}
        tokenizer = _tokenizer(marks, extra_special_tokens={"image_token": "<|image_pad|>"})
        return _kind("colqwen2")(pictures, tokenizer)
    pictures = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    if name == "colpali":
        pictures.image_seq_length = 36
        tokenizer = _tokenizer({"<image>": IMAGE}, extra_special_tokens={"image_token": "<image>"})
        return _kind("colpali")(pictures, tokenizer)
    from transformers import Idefics3ImageProcessorPil

    marks = {"<image>": IMAGE, "<fake_token_around_image>": 98, "<end_of_utterance>": 97}
    marks |= {"<global-img>": 96, "<row_1_col_1>": 95, "<row_1_col_2>": 94}
    tiles = Idefics3ImageProcessorPil(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 24}
    )
    return _kind("colmodernvbert")(tiles, _tokenizer(marks), image_seq_len=9)


def pictures(count: int) -> list[Image.Image]:
    """Pages of several shapes."""
    sizes = [(32, 40), (40, 32), (24, 48), (48, 24)]
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (*sizes[n % 4], 3), dtype=np.uint8))
        for n in range(count)
    ]


def inputs_of(name: str, items: list[Any]) -> dict[str, torch.Tensor]:
    """What the processor makes of pages or texts, without labels."""
    made = processor(name)
    if isinstance(items[0], str):
        found = made.process_queries(text=items)
    else:
        found = made.process_images(images=items)
    return {key: value for key, value in found.items() if key != "labels"}
