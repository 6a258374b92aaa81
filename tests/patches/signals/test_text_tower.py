"""The text tower: texts longer than it can read, and methods that can do without."""

from __future__ import annotations

import pytest
import torch
from looker import looker
from torch.nn.functional import normalize
from toy_clip import random_clip
from toy_tokenizer import make

from vlmcompress.api import compress
from vlmcompress.errors import CompositionError, UnsupportedModelError, VLMCompressError
from vlmcompress.patches.signals.text_tower import LongText, TextTower, stretched

TOY = make(words=130)
"""Word wN of the random models is token N."""


@pytest.mark.parametrize(("rows", "longer"), [(77, 248), (64, 196), (21, 24), (20, 20), (8, 8)])
def test_a_stretched_table_of_positions_goes_through_the_old_one(rows, longer):
    table = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    long = stretched(table)
    assert long.shape == (longer, 4)
    assert torch.equal(long[:20], table[:20])
    assert torch.equal(long[20::4], table[20:])
    for row in range(20, rows - 1):
        for quarter in range(4):
            between = table[row] + quarter / 4 * (table[row + 1] - table[row])
            assert torch.allclose(long[20 + (row - 20) * 4 + quarter], between, atol=1e-6)
    if rows > 20:  # the last row goes on as the step before
        assert torch.allclose(long[-1], table[-1] + 0.75 * (table[-1] - table[-2]), atol=1e-6)


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


@torch.no_grad()
def test_a_long_text_is_read_to_its_end_with_stretched_positions():
    clip = random_clip(positions=77)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    text, other = (words(*range(3, 102), last) for last in (103, 104))
    assert len(TOY(text)["input_ids"]) == 100
    cut, long = TextTower(clip, TOY), TextTower(clip, TOY, long=True)
    assert torch.equal(cut.read(text), cut.read(other)), "both are cut"
    assert not torch.equal(long.read(text), long.read(other))
    bigger = random_clip(positions=248)
    bigger.load_state_dict(
        {n: stretched(v) if "position_embedding" in n and "text" in n else v
         for n, v in clip.state_dict().items()}
    )  # fmt: skip
    expected = bigger.get_text_features(**TOY(text, return_tensors="pt")).pooler_output[0]
    assert torch.allclose(long.read(text), normalize(expected, dim=-1), atol=1e-6)
    # Longer than that it is cut, too.
    longest = words(*([5] * 248))
    assert torch.equal(long.read(longest), long.read(longest + " w6"))
    assert clip.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert torch.equal(cut.read(text), TextTower(clip, TOY).read(text))


@torch.no_grad()
def test_a_text_that_fits_is_read_the_same_with_and_without():
    clip = random_clip(positions=77)
    for text in (words(3, 4), words(*range(3, 80))):
        assert torch.equal(
            TextTower(clip, TOY, long=True).read(text), TextTower(clip, TOY).read(text)
        )


@torch.no_grad()
def test_under_autocast_relevance_is_a_product_in_float32(random_subject):
    method, shown = looker("relevance")
    options = {"budget": 4, "processor": TOY, "text_tower": (random_clip(positions=24), TOY)}
    batch = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, method, **options):
        random_subject.model(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            random_subject.model(**batch)
    plain, under = (one.relevance for one in shown)
    assert under.dtype == torch.float32
    assert not torch.equal(under, under.bfloat16().float())
    assert (under - plain).abs().max() < 5e-2  # the towers themselves run in bfloat16


@pytest.mark.parametrize("long", [False, True], ids=["cut", "long"])
@torch.no_grad()
def test_long_questions_are_an_option_of_the_text_tower(random_subject, long):
    clip = random_clip(positions=24)
    tower = LongText((clip, TOY)) if long else (clip, TOY)
    batch = random_subject.batch(random_subject.prompt(1, 1, text=33))
    found = []
    for last in (97, 98):  # CLIP reads off the token with the highest number
        batch["input_ids"][0, -1] = last
        method, shown = looker("relevance")
        with compress(random_subject.model, method, budget=4, processor=TOY, text_tower=tower):
            random_subject.model(**batch)
        found.append(shown[0].relevance)
    assert torch.equal(*found) != long


@torch.no_grad()
def test_relevance_is_taken_before_text_where_there_is_a_tower(random_subject):
    options = {"budget": 4, "processor": TOY}
    for tower, name in (((random_clip(), TOY), "relevance"), (None, "text"), (LongText(), "text")):
        method, shown = looker("relevance|text")
        with compress(random_subject.model, method, text_tower=tower, **options):
            random_subject.model(**random_subject.batch(random_subject.prompt(1, 1)))
        assert [n for n in ("relevance", "text") if getattr(shown[0], n) is not None] == [name]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"processor": TOY, "text_tower": "tiny-clip"}, UnsupportedModelError, "of width 128"),
        ({"processor": TOY, "text_tower": "/nowhere/x"}, VLMCompressError, "does not exist"),
        ({"text_tower": "tiny-clip"}, CompositionError, r"give compress\(\.\.\., processor="),
        (
            {"processor": TOY, "text_tower": LongText("tiny-clip")},
            UnsupportedModelError,
            "of width 128",
        ),
    ],
    ids=["another tower", "no folder", "no processor", "another tower for long texts"],
)
def test_a_tower_that_was_given_has_to_fit_even_where_text_would_do(
    random_subject, options, error, message
):
    with pytest.raises(error, match=message):
        compress(random_subject.model, looker("relevance|text")[0], budget=4, **options)


@pytest.mark.parametrize("given", [3, "", ("one",), LongText(3)])
def test_a_text_tower_that_cannot_be_one_is_refused_by_every_method(random_subject, given):
    with pytest.raises(VLMCompressError, match=r"text_tower=.* is not possible: give a folder"):
        compress(random_subject.model, "divprune", "50%", text_tower=given)
