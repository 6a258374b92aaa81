"""A clip of two frames: the laws of the projector stage, and of cuts, for types that take clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clip_case import ClipCase
from media import clip
from pooled import CLIP_REDUCERS, check_merging
from references import masked, staged
from scope import CLIPS_HERE, CUTS, DOZEN
from shortening import TOLERANCE, EverySecond, apart, is_void, maskable

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError

STEPS = 6
"""Of a clip that is cut into chunks of one, two, and what is left."""


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


@pytest.mark.rotating(axis="spec", by="case", count=1)
@pytest.mark.parametrize("spec", CLIP_REDUCERS)
def test_merging_in_a_clip_equals_a_projector_that_gives_the_merged(case, spec):
    check_merging(case, spec, CLIP_REDUCERS[spec], case.inputs)


def test_a_clip_in_chunks_has_the_features_of_the_clip(case):
    """Of types whose frames are said to be encoded apart; the others refuse."""
    base: Any = case.parts.base
    inputs = clip(case.model, base, STEPS)
    if case.parts.family.frames is None:
        with pytest.raises(UnsupportedModelError, match="not known to be encoded each by itself"):
            compress(case.model, "divprune", "50%", max_memory="1GB")
        return
    with torch.no_grad():
        whole = base.get_video_features(**inputs, return_dict=True)
        with compress(case.model, "random", "50%", max_memory="1GB") as c:
            found = base.get_video_features(**inputs, return_dict=True)
            (note,) = c.report().notes
    assert f"in 3 chunks of at most {STEPS - 3} frames" in note
    pairs = zip(case.parts.family.features(found), case.parts.family.features(whole), strict=True)
    for one, other in pairs:
        assert one.shape == other.shape
        assert (one - other).abs().max() < TOLERANCE
        assert (one - other.flip(0)).abs().max() > 100 * TOLERANCE
