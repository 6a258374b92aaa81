"""The tiny LLaVA: its words, processor and configuration."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dev.training.llava.tower import FEATURE_LAYER, vision_config
from vlmcompress.eval.worlds.world import (
    COLORS,
    GLYPHS,
    IMAGE_SIZE,
    NUMBERS,
    PATCH_SIZE,
    PLACES,
    PLURALS,
    SHAPES,
)

# CLIP text towers treat an end token of id 2 as "the largest id ends the text", so it is not 2.
SPECIAL = ("<pad>", "<s>", "<unk>", "<image>", "</s>")
_COMMON = (
    "user assistant : ? . , ! what which where how many color shape place sign number letter is "
    "are does do have the a an in on at there object objects written count lie left right top "
    "bottom center of above below you see yes no it and image picture small medium large read "
    "describe this that"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] }} : "
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s> {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def vocabulary() -> list[str]:
    """Every word that the model knows, in the order of its ids."""
    plurals = [PLURALS[shape] for shape in SHAPES]
    places = [word for place in PLACES for word in place.split()]
    words = [*SPECIAL, *_COMMON.split(), *SHAPES, *plurals, *COLORS, *places, *NUMBERS, *GLYPHS]
    words += [chr(code) for code in range(ord("a"), ord("z") + 1)]
    return list(dict.fromkeys(words))


def make_tokenizer(words: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """One token a word, lower-cased; digits and punctuation marks stand alone.

    Args:
        words: In the order of their ids; by default those of tiny-llava.
    """
    ids = {word: number for number, word in enumerate(words or vocabulary())}
    return make_word_tokenizer(
        ids,
        processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
        ),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def make_word_tokenizer(
    ids: dict[str, int], finish: processors.TemplateProcessing, **special: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words.

    Args:
        ids: Every word and its number.
        finish: What is added to a text.
        special: Names of the special tokens, as transformers wants them.
    """
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), behavior="isolated"),
        ]
    )
    tokenizer.post_processor = finish
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        **special,
    )


def make_image_processor(size: int = IMAGE_SIZE) -> CLIPImageProcessorPil:
    """Any picture to a square of `size` pixels in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def make_processor(
    words: Sequence[str] | None = None, image_size: int = IMAGE_SIZE
) -> LlavaProcessor:
    """Tokenizer, image processor and a chat template in the manner of LLaVA-1.5."""
    return LlavaProcessor(
        image_processor=make_image_processor(image_size),
        tokenizer=make_tokenizer(words),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_config(words: Sequence[str] | None = None, image_size: int = IMAGE_SIZE) -> LlavaConfig:
    """A CLIP tower of 6 layers and a Llama decoder of 6 layers, 3.1 million parameters."""
    ids = {word: number for number, word in enumerate(words or vocabulary())}
    special: dict[str, Any] = {
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    width = 160
    text = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=432,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        # Rows of unit length: a projected patch can then be compared with words by a dot product.
        initializer_range=width**-0.5,
        tie_word_embeddings=True,
        **special,
    )
    return LlavaConfig(
        vision_config=vision_config(image_size),
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **special,
    )


def fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the state of a training model, which may have more; every weight there has to arrive."""
    model.load_state_dict(weights, strict=False)
    for name, value in model.state_dict().items():
        if name in weights and not torch.equal(value, weights[name]):
            raise RuntimeError(f"weight {name} did not load")


def export(
    weights: dict[str, Tensor],
    folder: Path,
    config: LlavaConfig | None = None,
    processor: LlavaProcessor | None = None,
    wrap: Callable[[Any], Any] = lambda model: model,
) -> None:
    """Write the model folder.

    Args:
        weights: float32 state of `LlavaForConditionalGeneration`.
        folder: Where it goes; files of the same names are replaced.
        config: Of the model; by default that of tiny-llava.
        processor: The same.
        wrap: What is saved in place of the model.
    """
    model = LlavaForConditionalGeneration(config or make_config())
    fill(model, weights)
    special: Any = model.config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
        do_sample=False,
    )
    replace_folder(folder, wrap(model), processor or make_processor())


def replace_folder(folder: Path, *parts: Any) -> None:
    """Save beside `folder`, then move file by file, so that a reader meets whole files.

    Args:
        folder: Where the files go.
        parts: Whatever has a `save_pretrained`: model, processor, tokenizer.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for part in parts:
        part.save_pretrained(fresh)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(fresh.iterdir()):
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    fresh.rmdir()
