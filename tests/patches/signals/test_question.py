"""Signals of the question: its embedded words, and the similarity of patches to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare_tower import look_at
from looker import looker, per_image
from PIL import Image
from torch.nn.functional import normalize
from toy_clip import random_clip
from toy_tokenizer import make
from transformers import AutoTokenizer, CLIPModel

from vlmcompress.api import compress
from vlmcompress.errors import (
    CompositionError,
    UnsupportedCallError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.eval.worlds.world import HELD_OUT_SEEDS, PLACES, make_scene, render
from vlmcompress.models.names import ASSETS
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.signals.text_tower import LongText

TOLERANCE = 1e-5
QUESTION = "how many red circles are there"
TOY = make(words=130)
"""Word wN of the random models is token N."""


def chat(processor: Any, *turns: str, images: int = 1) -> str:
    """A rendered chat of turns of the user and the assistant in turn; pictures come first."""
    roles = ("user", "assistant")
    messages = [
        {"role": roles[n % 2], "content": [{"type": "text", "text": text}]}
        for n, text in enumerate(turns)
    ]
    messages[0]["content"] = [{"type": "image"}] * images + messages[0]["content"]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text


def ask(processor: Any, *texts: str, images: int = 1) -> Any:
    """Inputs of tiny-llava, padded on the left, with random pictures."""
    inputs = processor.tokenizer(
        [text.replace("<image>", "<image>" * 144) for text in texts],
        padding=True,
        return_tensors="pt",
    )
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(images * len(texts), 3, 96, 96, generator=g)
    return {**inputs, "pixel_values": pixels}


def embedded(model: Any, processor: Any, text: str) -> torch.Tensor:
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model.get_input_embeddings()(ids)[0]


@pytest.mark.parametrize("beams", [0, 1, 2], ids=["forward", "generate", "beams"])
@torch.no_grad()
def test_text_is_the_embedded_question_of_each_prompt(tiny_llava, beams):
    model, processor = tiny_llava
    short = "is there a star"
    inputs = ask(processor, chat(processor, QUESTION), chat(processor, short))
    method, shown = looker("text")
    with compress(model, method, budget=9, processor=processor):
        if beams:
            model.generate(**inputs, max_new_tokens=2, num_beams=beams, use_cache=beams == 2)
        else:
            model(**inputs)
    assert torch.equal(shown[0].text, embedded(model, processor, QUESTION))
    assert torch.equal(shown[1].text, embedded(model, processor, short))


@torch.no_grad()
def test_text_is_that_of_the_newest_turn_of_the_chunk(tiny_llava):
    model, processor = tiny_llava
    method, shown = looker("text")
    with compress(model, method, budget=9, processor=processor.tokenizer):
        model(**ask(processor, chat(processor, "is there a star", "yes", QUESTION)))
    assert torch.equal(shown[0].text, embedded(model, processor, QUESTION))


@torch.no_grad()
def test_without_a_processor_the_words_of_the_template_count_too(tiny_llava):
    model, processor = tiny_llava
    method, shown = looker("text")
    with compress(model, method, budget=9):
        model(**ask(processor, chat(processor, QUESTION)))
        model(**ask(processor, chat(processor, "is there a star", "yes", QUESTION)))
    words = ["is there a star assistant : yes", "user :", QUESTION, "assistant :"]
    assert torch.equal(shown[0].text, embedded(model, processor, " ".join(words[2:])))
    # The end of an answer is a token that the configuration names.
    assert torch.equal(shown[1].text, embedded(model, processor, " ".join(words)))


def test_without_a_processor_the_answer_is_no_part_of_the_question(tiny_llava):
    model, processor = tiny_llava
    method, shown = looker("text")
    with compress(model, method, budget=9):
        # Without a cache every step is a prefill of the prompt and the answer so far.
        inputs = ask(processor, chat(processor, QUESTION))
        model.generate(**inputs, min_new_tokens=3, max_new_tokens=3, use_cache=False)
    assert len(shown) == 3
    for tokens in shown:
        assert torch.equal(tokens.text, shown[0].text)


@torch.no_grad()
def test_words_behind_the_attention_mask_are_padding(random_subject):
    batch = random_subject.batch(random_subject.prompt(1, 1))
    batch["attention_mask"][:, -2:] = 0
    method, shown = looker("text")
    with compress(random_subject.model, method, budget=4):
        random_subject.model(**batch)
    words = batch["input_ids"][0, -8:-2]
    assert torch.equal(shown[0].text, random_subject.model.get_input_embeddings()(words))


@torch.no_grad()
def test_a_prompt_without_words_is_refused_where_they_are_needed(tiny_llava):
    model, processor = tiny_llava
    inputs = ask(processor, chat(processor, ""))
    with (
        compress(model, looker("text")[0], budget=9, processor=processor),
        pytest.raises(UnsupportedCallError, match="prompt 0 has no words beside its images"),
    ):
        model(**inputs)


def tiny_clip() -> tuple[Any, Any]:
    folder = ASSETS / "tiny_clip"
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    return clip.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def test_relevance_of_tiny_llava_is_that_of_its_own_clip(tiny_llava):
    model, processor = tiny_llava
    other = "what color is the star"
    inputs = ask(processor, chat(processor, QUESTION), chat(processor, other))
    method, shown = looker("relevance")
    with compress(model, method, budget=9, processor=processor):
        model.generate(**inputs, max_new_tokens=1)
    clip, tokenizer = tiny_clip()
    states = clip.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states
    vision = clip.visual_projection(clip.vision_model.post_layernorm(states[-2][:, 1:]))
    for number, text in enumerate((QUESTION, other)):
        words = clip.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
        expected = torch.cosine_similarity(vision[number], words, dim=-1)
        assert shown[number].relevance.dtype == torch.float32
        assert (shown[number].relevance - expected).abs().max() < TOLERANCE
        assert expected.std() > 1e-2
    swapped = (shown[0].relevance - shown[1].relevance).abs().max()
    assert swapped > 1e-2


@torch.no_grad()
def test_relevance_has_the_order_of_the_tokens_in_every_family(subject, monkeypatch):
    if "relevance" not in family_of(subject.model).encoder.gives(subject.model.model):
        with pytest.raises(UnsupportedModelError, match="needs relevance, which this"):
            compress(subject.model, looker("relevance")[0], budget=4)
        return
    clip = random_clip(subject.model.config.vision_config.hidden_size)
    prompts = [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=5)]
    batch = subject.batch(*prompts)
    method, shown = looker("relevance")
    with compress(subject.model, method, budget="50%", processor=TOY, text_tower=(clip, TOY)):
        subject.model(**batch)
    bare = look_at(subject, batch, monkeypatch)
    places = normalize(
        clip.visual_projection(clip.vision_model.post_layernorm(bare.states)), dim=-1
    )
    # The words after the last picture: two that follow each picture, and the rest.
    questions = [prompts[row][0][-2 - text :] for row, text in ((0, 4), (1, 5), (1, 5))]
    for number, mine in enumerate(per_image(shown, "relevance")):
        ids = torch.tensor([questions[number]])
        text = normalize(clip.get_text_features(input_ids=ids).pooler_output[0], dim=-1)
        expected = bare.mixture[number] @ (places @ text)
        assert (mine - expected).abs().max() < TOLERANCE
        assert expected.std() > 1e-3


@torch.no_grad()
def test_a_long_question_is_cut_to_what_the_text_tower_reads(random_subject):
    clip = random_clip()
    found = []
    for text in (6, 30):
        batch = random_subject.batch(random_subject.prompt(1, 1, text=30))
        method, shown = looker("relevance")
        if text == 6:
            batch["input_ids"] = batch["input_ids"][:, : text - 30]
            batch["attention_mask"] = batch["attention_mask"][:, : text - 30]
        with compress(
            random_subject.model, method, budget=4, processor=TOY, text_tower=(clip, TOY)
        ):
            random_subject.model(**batch)
        found.append(shown[0].relevance)
    assert torch.equal(*found)


@torch.no_grad()
def test_long_text_of_nothing_is_the_tower_of_tiny_llava(tiny_llava):
    model, processor = tiny_llava
    inputs = ask(processor, chat(processor, QUESTION))
    found = []
    for tower in (None, LongText()):
        method, shown = looker("relevance")
        with compress(model, method, budget=9, processor=processor, text_tower=tower):
            model(**inputs)
        found.append(shown[0].relevance)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, CompositionError, r"give compress\(\.\.\., processor=\.\.\.\)"),
        ({"processor": TOY}, UnsupportedModelError, "needs a text tower, and this model brings"),
        (
            {"processor": TOY, "text_tower": "tiny-clip"},
            UnsupportedModelError,
            "vision tower of width 128, this one has 32",
        ),
        (
            {"processor": TOY, "text_tower": (torch.nn.Linear(2, 2), TOY)},
            UnsupportedModelError,
            "a Linear is no CLIP model: give text_tower=",
        ),
        ({"processor": TOY, "text_tower": "/nowhere/x"}, VLMCompressError, "does not exist"),
        (
            {"processor": TOY, "text_tower": ASSETS / "tiny_llava"},
            UnsupportedModelError,
            "text tower .*tiny_llava' is no CLIP model",
        ),
    ],
    ids=["no processor", "no tower", "another tower", "no CLIP", "no folder", "another model"],
)
def test_what_relevance_takes_is_asked_for(random_subject, options, error, message):
    before = dict(random_subject.model.__dict__)
    with pytest.raises(error, match=message):
        compress(random_subject.model, looker("relevance")[0], budget=4, **options)
    assert random_subject.model.__dict__ == before


def test_tiny_clip_is_taken_only_for_its_own_patch_embedding(tiny_llava):
    model, processor = tiny_llava
    weight = model.model.vision_tower.embeddings.patch_embedding.weight
    with compress(model, looker("relevance")[0], budget=4, processor=processor):
        pass
    with torch.no_grad():
        weight.mul_(2)
    try:
        with pytest.raises(UnsupportedModelError, match="this model brings none"):
            compress(model, looker("relevance")[0], budget=4, processor=processor)
    finally:
        with torch.no_grad():
            weight.div_(2)


@torch.no_grad()
def test_the_most_relevant_patch_lies_on_the_thing_that_is_asked_for(tiny_llava):
    model, processor = tiny_llava
    method, shown = looker("relevance")
    hits = 0
    with compress(model, method, budget=9, processor=processor):
        for seed in HELD_OUT_SEEDS[:10]:
            scene = make_scene(seed)
            thing = scene.objects[0]
            text = chat(processor, f"where is the {thing.name}")
            picture = Image.fromarray(render(scene)[0])
            model(**processor(images=[picture], text=text, return_tensors="pt"))
            row, column = divmod(int(shown[-1].relevance.argmax()), 12)
            place = PLACES[row // 4 * 3 + column // 4]
            hits += place in {other.place for other in scene.objects if other.name == thing.name}
    assert hits >= 9, "one of nine places by chance"
