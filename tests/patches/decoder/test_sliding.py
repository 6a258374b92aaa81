"""Layers that see a window: images behind it are ranked in the nearest full layer before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bare import last_logits
from oracle import TOLERANCE, oracle
from subject_models import SUBJECTS

from vlmcompress.api import compress

FULL = 2
"""Of the six layers this one and the last see everything; a window has 12 tokens."""


@pytest.fixture(scope="module")
def gemma() -> Any:
    return SUBJECTS["random gemma3"]()


def best(weights: torch.Tensor, columns: torch.Tensor, alive: list[int], count: int) -> list[int]:
    """The raster indices that attention [L] ranks highest."""
    order = weights[columns[alive]].argsort(descending=True, stable=True)[:count]
    return sorted(alive[int(place)] for place in order)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize(
    "method", ["fastv(k=4)", "fastv(k=5)", "pyramiddrop(layers=(3,4))", "pyramiddrop(layers=(4,))"]
)
@pytest.mark.parametrize("images", [1, 2])
def test_the_full_layer_before_ranks_what_is_left(gemma, method, images, positions):
    inputs = gemma.batch(gemma.prompt(images, 3, text=14), gemma.prompt(1, 4, text=20))
    with compress(gemma.model, method, positions=positions) as c:
        short = last_logits(gemma, inputs)
    report = c.report()
    if positions == "keep":
        assert (short - oracle(report, gemma, inputs)).abs().max() < TOLERANCE
    # What the full layer attends to, nothing dropped: it runs before every cut.
    whole = replace(report, images=[replace(image, cuts={}) for image in report.images])
    attention = oracle(whole, gemma, inputs, FULL, whole.images)[:, :, -1]
    left = torch.ones(attention.shape[0], attention.shape[2])
    seen: dict[int, int] = {}
    places = []
    for image in report.images:
        assert image.notes == []
        number = seen[image.row] = seen.get(image.row, -1) + 1
        places.append(gemma.columns(inputs["input_ids"][image.row])[number])
    before = [image.kept for image in report.images]
    for cut in sorted(report.images[0].cuts):
        now = [image.cuts[cut] for image in report.images]
        # Later cuts rank what the earlier left: their softmax is over those alone.
        weights = attention * left[:, None]
        weights = (weights / weights.sum(-1, keepdim=True)).mean(1)
        for image, columns, alive, kept in zip(report.images, places, before, now, strict=True):
            assert kept == best(weights[image.row], columns, alive, len(kept))
            assert weights[image.row, columns[alive]].std() > 1e-6
            left[image.row, columns[sorted(set(alive) - set(kept))]] = 0
        before = now


def test_where_no_full_layer_comes_before_the_report_says_so(gemma):
    far, near = gemma.prompt(1, 3, text=14), gemma.prompt(1, 3, text=0)
    with compress(gemma.model, "fastv(k=2)") as c:
        gemma.generate(gemma.batch(far))
        (image,) = c.report().images
        gemma.generate(gemma.batch(near))
        assert c.report().images[0].notes == []
    (note,) = image.notes
    assert note.startswith("before decoder layer 2 it was ranked in layer 1, which sees 12 tokens")
    assert "the image begins 24 back" in note
