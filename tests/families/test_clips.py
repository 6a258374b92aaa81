"""A clip of two frames: the laws of the projector stage, and of cuts, for types that take clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from media import clip
from model_case import TYPE_IDS, Case, Inputs, case_of
from references import masked, staged
from scope import CLIPS_HERE, CUTS, DOZEN
from shortening import TOLERANCE, EverySecond, apart, is_void, maskable

from vlmcompress.api import compress

FRAMES = 2


class ClipCase(Case):
    """The same model with a clip in its prompt; words between frames where it wants them."""

    def __init__(self, model_type: str) -> None:
        known = case_of(model_type)
        self.model_type, self.model, self.parts = model_type, known.model, known.parts
        self.token = self.parts.family.placeholders(self.model)["video"]
        media = clip(self.model, self.parts.base, FRAMES)
        assert media is not None
        self.inputs = self._accepted(media)

    def _accepted(self, media: Inputs) -> Inputs:
        """A prompt that the bare model takes: its frames in one piece, else one by one."""
        base: Any = self.parts.base
        with torch.no_grad():
            output = base.get_video_features(**media, return_dict=True)
        features = self.parts.family.features(output)
        count = sum(piece.shape[:-1].numel() for piece in features)
        whole = [self.token] * count
        frame = [self.token] * (count // FRAMES)
        for body in (whole, [*frame, 31, *frame]):
            inputs = self._batch([[40, 41, 42, *body, *range(50, 60)]], media)
            for name in TYPE_IDS:
                if name in inputs:
                    inputs[name] = inputs[name] * 2
            try:
                self.logits(inputs)
            except Exception:  # whatever a model raises at a prompt that it does not want
                continue
            return inputs
        raise AssertionError(f"{self.model_type} takes no clip of these")


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
    assert len(report.images) == 1
    reference = masked if maskable(case) else staged
    assert (short - reference(case, report, case.inputs)).abs().max() < TOLERANCE
    assert (short - bare[:, -1]).abs().max() > 10 * TOLERANCE
