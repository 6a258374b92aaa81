"""What a report says of a budget that several stages share, and of what was collected."""

from __future__ import annotations

import pytest
import torch
from subject_models import LLAVA

from vlmcompress.api import compress


@pytest.fixture(scope="module")
def subject():
    return LLAVA["tiny-llava"]()


def report(subject, method, budget=None, **options):
    inputs = subject.batch(subject.prompt(1, 1), subject.prompt(1, 2))
    with compress(subject.model, method, budget, **options) as c, torch.no_grad():
        subject.model(**inputs)
    return c.report()


@pytest.mark.parametrize(
    ("method", "given", "after"),
    [
        ("divprune", 144, 36),
        ("pitome", 36, 36),
        ("pitome+divprune", 72, 36),
        ("pitome+aim-merge", 72, 36),
        # FastV on 6 layers keeps 2/3 by default: 54 for it, half of the way before is 88.
        ("pitome+divprune+fastv", 88, 54),
    ],
)
def test_every_stage_is_reported(subject, method, given, after):
    found = report(subject, method, 36)
    for image in found.images:
        assert (image.before, image.given, image.after) == (144, given, after)
        assert image.mean == pytest.approx(36, abs=0.5)
        assert len(image.kept) == after
    steps = {144: "", given: f" -> {given}", after: f" -> {after}"}
    assert f"image 0 (12x12): 144{steps[given] if given != 144 else ''}" in str(found)
    assert f"-> {after} tokens" in str(found)
    assert found.to_dict()["images"][0]["given"] == given


def test_groups_reach_from_the_decoder_back_to_the_patches(subject):
    found = report(subject, "pitome+aim-merge", 36).images[0]
    members = sorted(member for group in found.groups for member in group)
    assert members == list(range(144)), "merging loses no patch"
    picked = report(subject, "pitome+divprune", 36).images[0]
    held = [member for group in picked.groups for member in group]
    assert len(held) == len(set(held)) < 144
    assert [group[0] for group in picked.groups] == picked.kept


@pytest.mark.parametrize(
    ("method", "signals"),
    [
        ("divprune", []),
        ("scope", ["cls_attention"]),
        ("hiprune", ["encoder_attention"]),
        ("mmtok", ["text"]),
        ("aim-merge(metric='keys')", ["keys"]),
        ("aim-merge", []),
    ],
)
def test_what_was_collected_is_reported(subject, method, signals):
    assert report(subject, method, 36).signals == signals
