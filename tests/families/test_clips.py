"""A clip of two frames: the laws of the projector stage, and of cuts, for types that take clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clip_case import ClipCase
from references import masked, staged
from scope import CLIPS_HERE, CUTS, DOZEN
from shortening import TOLERANCE, EverySecond, apart, is_void, maskable

from vlmcompress.api import compress


@pytest.fixture(
    scope="module",
    params=[t if t in DOZEN else pytest.param(t, marks=pytest.mark.slow) for t in CLIPS_HERE],
)
def case(request: Any) -> ClipCase:
    return ClipCase(request.param)


@pytest.mark.parametrize("method", ["divprune", "cut"])
def test_a_clip_is_dropped_as_if_it_had_never_had_the_tokens(case, method):
    if method == "cut" and case.model_type not in CUTS:
        pytest.skip("projector stage only")
    chosen = EverySecond(k=case.first_cut, ratio=0.5) if method == "cut" else method
    budget = None if method == "cut" else "50%"
    bare = case.logits(case.inputs)
    with compress(case.model, "random", budget="100%"):
        assert torch.equal(case.logits(case.inputs), bare)
    with compress(case.model, chosen, budget=budget) as c:
        short = case.logits(case.inputs)[:, -1]
        report = c.report()
        if not is_void(case, "cached"):
            again = case.generate(case.inputs, use_cache=False)
            assert apart(case.generate(case.inputs).logits, again.logits) < TOLERANCE
    assert report.engaged
    assert [len(image.parts) for image in report.images] == [1]
    reference = masked if maskable(case) else staged
    assert (short - reference(case, report, case.inputs)).abs().max() < TOLERANCE
    assert (short - bare[:, -1]).abs().max() > 10 * TOLERANCE
