"""The tiny model's words and the way it is trained: what training sees is what inference meets."""

import numpy as np
import pytest
import torch
from PIL import Image

from dev.training.llava.attention_targets import referents, wanted_attention
from dev.training.llava.data import FIELDS, PATCHES, SIDE, label
from dev.training.llava.model import make_processor, make_tokenizer, vocabulary
from dev.training.llava.packed_questions import (
    IDS,
    PREFIX,
    PREFIX_LENGTH,
    SEGMENT_LENGTH,
    SEGMENTS,
    UNSCORED,
    pack,
    pose,
    positions,
    segment_attention,
)
from dev.training.llava.tower import as_input
from vlmcompress.eval.worlds.world import KINDS, PLACES, ask, draw, make_scene, render

EVEN = [1 / len(KINDS)] * len(KINDS)


def chat(processor, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def test_every_word_of_every_question_is_known():
    tokenizer = make_tokenizer()
    assert len(set(vocabulary())) == len(vocabulary())
    for seed in range(60):
        for kind in KINDS:
            for wording in (0, 1):
                question = ask(make_scene(seed), kind, np.random.default_rng(seed), wording)
                if question is not None:
                    ids = tokenizer(f"{question.text} {question.answer}")["input_ids"]
                    assert tokenizer.unk_token_id not in ids


def test_case_and_missing_spaces_do_not_matter():
    tokenizer = make_tokenizer()
    plain = tokenizer("what color is the circle ?")["input_ids"]
    assert tokenizer("What color is the Circle?")["input_ids"] == plain
    assert tokenizer.decode(plain, skip_special_tokens=True) == "what color is the circle ?"
    assert tokenizer.tokenize("42!") == ["4", "2", "!"]
    assert tokenizer.unk_token_id in tokenizer("zebra")["input_ids"]


def test_end_of_text_has_an_id_that_clip_understands():
    # transformers reads an end token of id 2 as "the largest id is the end".
    assert IDS["</s>"] != 2


def test_the_processor_gives_what_training_saw():
    processor = make_processor()
    scene = make_scene(3)
    question = ask(scene, "color", np.random.default_rng(0))
    inputs = processor(
        text=[chat(processor, question.text)], images=[draw(scene)], return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids[: len(PREFIX)] == [IDS[word] for word in PREFIX]
    assert ids[len(PREFIX) : PREFIX_LENGTH] == [IDS["<image>"]] * (PREFIX_LENGTH - len(PREFIX))
    batch = pack([[question] * SEGMENTS])
    prompt = len(ids) - PREFIX_LENGTH
    assert ids[PREFIX_LENGTH:] == batch.tokens[0, 0, :prompt].tolist()
    # The next token after the prompt is the answer, then the end.
    answer = batch.wanted[0, 0, prompt - 1 : prompt + 1].tolist()
    assert answer == [IDS[question.answer], IDS["</s>"]]
    assert (batch.wanted[0, 0, : prompt - 1] == UNSCORED).all()
    seen = as_input(render(scene)[0][None]).float()
    torch.testing.assert_close(seen, inputs["pixel_values"], atol=5e-3, rtol=0)


def test_prompts_are_padded_on_the_left():
    processor = make_processor()
    picture = Image.new("RGB", (200, 120))
    texts = [chat(processor, text) for text in ("where is the red circle ?", "count the stars .")]
    inputs = processor(text=texts, images=[picture] * 2, padding=True, return_tensors="pt")
    assert inputs["attention_mask"][1, 0] == 0
    assert inputs["attention_mask"][:, -1].all()
    assert inputs["pixel_values"].shape == (2, 3, 96, 96)


def test_segments_attend_as_if_each_were_alone():
    torch.manual_seed(0)
    length = PREFIX_LENGTH + SEGMENTS * SEGMENT_LENGTH
    query, key, value = torch.randn(3, 2, 2, length, 8)
    out, _ = segment_attention(torch.nn.Module(), query, key, value, None, scaling=8**-0.5)
    order = torch.arange(length)
    segment = torch.where(
        order < PREFIX_LENGTH,
        -1,
        (order - PREFIX_LENGTH).div(SEGMENT_LENGTH, rounding_mode="floor"),
    )
    seen = (order[:, None] >= order) & ((segment == -1) | (segment[:, None] == segment))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_positions_restart_with_every_segment():
    ids = positions(torch.arange(PATCHES)[None])[0]
    starts = ids[PREFIX_LENGTH::SEGMENT_LENGTH]
    assert starts.tolist() == [PREFIX_LENGTH] * SEGMENTS
    assert ids[:PREFIX_LENGTH].tolist() == list(range(PREFIX_LENGTH))


def test_all_questions_fit_a_segment():
    longest = 0
    for seed in range(100):
        scene = make_scene(seed)
        batch = pack([pose(scene, np.random.default_rng(seed), EVEN)])
        longest = max(longest, int((batch.tokens != IDS["<pad>"]).sum(-1).max()))
        assert (batch.wanted == IDS["</s>"]).sum() == SEGMENTS
    assert longest <= SEGMENT_LENGTH


def test_labels_say_what_lies_where():
    for seed in range(40):
        scene = make_scene(seed)
        labels = dict(zip(FIELDS, label(scene, render(scene)[1]), strict=True))
        middles = np.flatnonzero(labels["middle"] == 1)
        assert len(middles) == len(scene.objects)
        for thing in scene.objects:
            patch = int(thing.y) // 8 * SIDE + int(thing.x) // 8
            assert patch in middles
            for field in ("shape", "color", "size", "glyph", "place"):
                words, value = FIELDS[field], labels[field][patch]
                assert (words[value - 1] if value > 0 else None) == getattr(thing, field)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_wanted_on_what_the_question_is_about(kind):
    for seed in range(60):
        scene = make_scene(seed)
        question = ask(scene, kind, np.random.default_rng(seed))
        if question is None:
            continue
        words = question.text.split()
        named = [words[index] for index in referents(words)]
        assert len(named) == (2 if kind == "relation" else 1), question.text
        labels = label(scene, render(scene)[1])
        wanted = wanted_attention(scene, question, labels, question.about)
        assert wanted.sum() == pytest.approx(1)
        patches = np.flatnonzero(wanted[len(PREFIX) :])
        if kind in ("reading", "count"):
            assert len(patches) == len(question.about)
        cells = {PLACES[p // SIDE // 4 * 3 + p % SIDE // 4] for p in patches.tolist()}
        assert {scene.objects[index].place for index in question.about} <= cells
        assert (wanted[0] > 0) == (
            kind == "count" or (question.answer == "no" and kind == "presence")
        )
