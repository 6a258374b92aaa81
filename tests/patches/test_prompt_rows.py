"""Prompts that end with their image, budgets above an image, and what the report says of a call."""

from __future__ import annotations

import pytest
import torch
from mechanisms import MECHANISMS
from oracle import TOLERANCE, every_row
from subject_models import llava_next
from subjects import BidirectionalSubject

from vlmcompress.api import compress
from vlmcompress.errors import BudgetError, UnsupportedCallError
from vlmcompress.models.loading import load


def ending(subject, images, seed):
    """A prompt whose last token is of its last image."""
    ids, pixels = subject.prompt(images, seed)
    ends = [place for place, token in enumerate(ids) if token == subject.image_token]
    return ids[: ends[-1] + 1], pixels


@pytest.mark.rotating(axis="method", by="subject", count=1, subject=MECHANISMS)
@pytest.mark.parametrize("method", ["divprune", "stride", "pool", "text-only"])
def test_a_prompt_may_end_with_its_image_where_nothing_asks_what_follows(subject, method):
    inputs = subject.batch(ending(subject, 1, 3), subject.prompt(2, 4), ending(subject, 2, 5))
    with compress(subject.model, method, budget=None if method == "text-only" else "25%") as c:
        output = subject.model(**inputs, position_ids=subject.positions(inputs))
        short = subject.generate(inputs)
        # `generate` gives new tokens the type of the last one: the bare Gemma 3 takes them for a
        # part of the image where it has no cache.
        if not isinstance(subject, BidirectionalSubject):
            assert torch.equal(short, subject.generate(inputs, use_cache=False))
    report = c.report()
    # The answer goes on from the last token that is left.
    logits, present = every_row(report, subject, inputs)
    for row, stays in enumerate(present):
        last = int(stays.nonzero()[-1])
        assert (output.logits[row, -1] - logits[row, last]).abs().max() < TOLERANCE


@pytest.mark.parametrize("method", ["fastv", "divprune+pyramiddrop"])
def test_a_row_that_cannot_be_ranked_is_named(llava, method):
    inputs = llava.batch(llava.prompt(1, 3), ending(llava, 1, 4))
    with (
        compress(llava.model, method, budget="60%"),
        pytest.raises(UnsupportedCallError, match="prompt 1 ends with an image"),
    ):
        llava.generate(inputs)


def test_a_prompt_of_nothing_but_dropped_images_is_refused(llava):
    ids, pixels = llava.prompt(1, 3)
    inputs = llava.batch(([i for i in ids if i == llava.image_token], pixels))
    with (
        compress(llava.model, "text-only"),
        pytest.raises(UnsupportedCallError, match="nothing of prompt 0 is left"),
    ):
        llava.generate(inputs)


def test_a_count_above_a_small_image_keeps_all_of_it_alone_as_in_a_batch(qwen):
    ids, pixels = qwen.prompt(1, 3)
    bare = qwen.generate(qwen.batch((ids, pixels)))
    with compress(qwen.model, "divprune", budget=37) as c:
        assert torch.equal(qwen.generate(qwen.batch((ids, pixels))), bare)
    (image,) = c.report().images
    assert image.after == 36
    assert image.notes == ["the budget of 37 is above its 36 tokens: all are kept"]
    assert f"note: {image.notes[0]}" in str(c.report())
    assert c.report().to_dict()["images"][0]["notes"] == image.notes


def test_a_count_above_every_possible_image_is_an_error(llava):
    most = llava.tokens_per_image
    with pytest.raises(BudgetError, match=f"{most + 1} is above the {most} visual tokens"):
        compress(llava.model, "divprune", budget=most + 1)
    tiled = llava_next()  # an overview of 4x4, and tiles of 8x8 together
    with pytest.raises(BudgetError, match="81 is above the 80 visual tokens that an image"):
        compress(tiled.model, "divprune", budget=81)
    compress(tiled.model, "divprune", budget=80).remove()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}])
def test_images_are_of_the_caller_s_rows_however_often_these_are_repeated(llava, options):
    inputs = llava.batch(llava.prompt(0, 3), llava.prompt(1, 4), llava.prompt(2, 5))
    with compress(llava.model, "divprune+fastv", budget="40%") as c:
        llava.generate(inputs, num_return_sequences=2, **options)
    assert [image.row for image in c.report().images] == [1, 2, 2]


def test_the_report_says_what_a_missing_processor_changes(llava):
    inputs = llava.batch(llava.prompt(1, 4))
    with compress(llava.model, "cdpruner", budget=9) as c:
        llava.generate(inputs)
    words, question = c.report().notes
    assert "embedded words of the question, not in CLIP's space: no processor= was given" in words
    assert "all text after the last picture" in question
    assert f"note: {words}" in str(c.report())


def test_with_a_processor_there_is_nothing_to_say():
    model, processor = load("tiny-llava", dtype="float32")
    with compress(model, "cdpruner", budget=9, processor=processor) as c:
        assert c.report().notes == []
