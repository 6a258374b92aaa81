"""Thresholds in place of budgets, in whole models: every image keeps its own number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import bare, last_logits
from built_subjects import subject_of
from cut_pixels import encode, every_feature, masked, pictures
from oracle import TOLERANCE, oracle

from vlmcompress.api import compress
from vlmcompress.errors import BudgetError, UnsupportedModelError
from vlmcompress.methods.fastv import FastV


def asked(subject: Any, rows: int = 2) -> Any:
    """A batch of one and two images of different words."""
    return subject.batch(*(subject.prompt(n, n, text=5 * n) for n in range(1, rows + 1)))


TOME = "tome(stage='projector', threshold={})"
DROPS = [
    ("random llava", "divprune(threshold={})", 0.3),
    ("random llava", "vidcom2(threshold={})", 0.3),
    ("random llava-next", "divprune(threshold={})", 0.3),
    ("random llava-next", "fastvid(threshold={})", 0.3),
    ("random llava-next", TOME, 0.3),
    ("random qwen2.5-vl", "divprune(threshold={})", 0.5),
    ("random qwen2.5-vl", "unit-drop(threshold={})", 0.7),
    ("random qwen3-vl with clips", "evs(threshold={})", 0.7),
    ("random qwen3-vl with clips", "fastvid(threshold={})", 0.5),
    ("random qwen3-vl with clips", TOME, 0.3),
    ("random qwen3-vl with clips", "unit-drop(threshold={})", 0.7),
    ("random gemma3", "divprune(threshold={})", 0.5),
]
EXACT = [case for case in DROPS if not case[1].startswith(("fastvid", "unit-drop"))]
"""What is kept as it was, or becomes a plain mean."""


@pytest.mark.parametrize(("name", "spec", "threshold"), DROPS)
def test_each_image_keeps_what_does_not_repeat(name, spec, threshold):
    """Counts are reported; a cache, and rows alone, give what the batch gave."""
    subject = subject_of(name)
    inputs, spec = asked(subject), spec.format(threshold)
    full = bare(subject, inputs).logits
    with compress(subject.model, spec) as c:
        short = last_logits(subject, inputs)
        counts = [image.after for image in c.report().images]
        assert torch.equal(subject.generate(inputs), subject.generate(inputs, use_cache=False))
        for row, images in ((0, 1), (1, 2)):
            alone = subject.batch(subject.prompt(images, images, text=5 * images))
            found = last_logits(subject, alone)[0]
            assert [image.after for image in c.report().images] == counts[row : row + images]
            assert (found - short[row]).abs().max() < TOLERANCE
    assert len(counts) == 3
    assert len(set(counts)) > 1
    assert all(0 < count < subject.tokens_per_image for count in counts)
    assert (short - full).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("then", ["", "+fastv"])
@pytest.mark.parametrize(("name", "spec", "threshold"), EXACT)
def test_dropping_by_threshold_equals_masking(name, spec, threshold, then):
    subject = subject_of(name)
    inputs = asked(subject)
    with compress(subject.model, spec.format(threshold) + then) as c:
        short = last_logits(subject, inputs)
    for image in c.report().images:
        due = FastV().schedule(subject.layers, image.after, None) if then else {}
        assert {layer: len(left) for layer, left in image.cuts.items()} == due
    assert (short - oracle(c.report(), subject, inputs)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "spec"), [case[:2] for case in DROPS])
def test_a_threshold_that_drops_nothing_changes_nothing(name, spec):
    subject = subject_of(name)
    inputs = asked(subject)
    full = bare(subject, inputs)
    logits, ids = full.logits, full.ids
    with compress(subject.model, spec.format(0)) as c:
        assert torch.equal(last_logits(subject, inputs), logits)
        assert torch.equal(subject.generate(inputs), ids)
        assert all(image.after == image.before for image in c.report().images)
        assert all(image.groups is None for image in c.report().images)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", ["random qwen2.5-vl", "random qwen3-vl with clips"])
def test_units_dropped_by_threshold_are_no_keys_in_the_tower(name, layer, monkeypatch):
    subject = subject_of(name)
    _, inputs = pictures(subject, [(6, 6), (5, 8)])
    untouched = every_feature(encode(subject, inputs))
    with compress(subject.model, f"unit-drop(threshold=0.7, layer={layer})"):
        found = every_feature(encode(subject, inputs))
    kept = [one.any(1) for one in found[0]]
    counts = [int(one.sum()) for one in kept]
    assert len({count / len(one) for count, one in zip(counts, kept, strict=True)}) == 2
    assert all(0 < count < len(one) for count, one in zip(counts, kept, strict=True))
    expected = every_feature(masked(subject, inputs, ~torch.cat(kept), monkeypatch, layer))
    for own, mine, other, bare_one in zip(kept, found[0], expected[0], untouched[0], strict=True):
        assert (mine[own] - other[own]).abs().max() < 1e-4
        assert (mine[own] - bare_one[own]).abs().max() > 1e-3


def test_what_a_threshold_leaves_of_the_tower_is_what_the_next_method_is_given():
    subject = subject_of("random qwen2.5-vl")
    inputs = asked(subject)
    with compress(subject.model, "unit-drop(threshold=0.7)") as c:
        last_logits(subject, inputs)
    left = [image.after for image in c.report().images]
    with compress(subject.model, "unit-drop(threshold=0.7)+divprune(ratio=0.5)") as c:
        last_logits(subject, inputs)
    assert [image.given for image in c.report().images] == left
    assert [image.after for image in c.report().images] == [round(0.5 * n) for n in left]


def test_pixels_that_repeat_are_left_out_up_to_the_threshold():
    subject = subject_of("random qwen2.5-vl")
    inputs = asked(subject)
    inputs["pixel_values"] = 0.01 * inputs["pixel_values"]
    half = inputs["pixel_values"].view(3, -1)[1:]
    half += torch.randn(half.shape, generator=torch.Generator().manual_seed(1))
    with compress(subject.model, "pixelprune(threshold=0.2)") as c:
        last_logits(subject, inputs)
    assert [image.after for image in c.report().images] == [1, 36, 36]


@pytest.mark.parametrize("budget", [9, "25%", "2 per frame", "0.5 flops", "120 ms"])
@pytest.mark.parametrize("spec", ["divprune(threshold=0.1)", "unit-drop(threshold=0.1)+divprune"])
def test_no_budget_beside_a_threshold(spec, budget):
    subject = subject_of("random qwen2.5-vl")
    with pytest.raises(BudgetError, match=r"threshold=0\.1 the content decides") as error:
        compress(subject.model, spec, budget)
    assert "\n" not in str(error.value)
    assert str(budget) in str(error.value)
    compress(subject.model, "divprune", "25%").remove()  # nothing was left half done


@pytest.mark.parametrize("name", ["random llava", "random gemma3"])
def test_tiles_that_are_encoded_together_keep_equally_many(name):
    with pytest.raises(UnsupportedModelError, match="keep equally many tokens") as error:
        compress(subject_of(name).model, "unit-drop(threshold=0.1)")
    assert "\n" not in str(error.value)
