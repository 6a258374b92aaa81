"""The laws, for every model type: nothing may change but the tokens that are gone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from model_case import Case
from pooled import REDUCERS, Pooled, check_merging
from references import masked, shortened, staged
from scope import CUTS, TOLERANCES, VOID
from shortening import TOLERANCE, apart, is_void, maskable, reduced

from vlmcompress.api import compress

METHODS = ("random", "divprune", "cut")


def test_the_picture_matters(case):
    other = case.single | {
        name: value.flip(0) if value.is_floating_point() else value
        for name, value in case.single.items()
        if name.startswith("pixel_values")
    }
    for name in other:
        if name.startswith("pixel_values") and other[name].is_floating_point():
            other[name] = other[name] * -1
    assert torch.isfinite(case.bare).all()
    assert (case.logits(other) - case.bare)[:, -1].abs().max() > 100 * TOLERANCE


def test_keeping_all_tokens_changes_not_one_bit(case):
    with compress(case.model, "random", budget="100%") as c:
        assert torch.equal(case.logits(case.single), case.bare)
        assert torch.equal(case.logits(case.both), case.bare_both)
    assert not c.report().engaged


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", METHODS)
def test_dropping_equals_never_having_had_the_tokens(case, method):
    with reduced(case, method) as c:
        short = case.logits(case.single)[:, -1]
    report = c.report()
    assert report.engaged
    reference = masked if maskable(case) else staged
    if is_void(case, "staged"):
        reference = shortened
    assert (short - reference(case, report, case.single)).abs().max() < TOLERANCE
    assert (short - case.bare[:, -1]).abs().max() > 10 * TOLERANCE


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", METHODS)
def test_dropping_in_a_padded_batch_equals_masking(case, method):
    if not maskable(case):
        pytest.skip("tokens act on others without attention: batch and single are compared below")
    with reduced(case, method) as c:
        short = case.logits(case.both)[:, -1]
    assert c.report().engaged
    allowed = TOLERANCES.get(case.model_type, TOLERANCE)
    assert (short - masked(case, c.report(), case.both)).abs().max() < allowed
    assert (short - case.bare_both[:, -1]).abs().amax(1).min() > 10 * TOLERANCE


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", ["bare", *METHODS])
def test_generating_with_a_cache_equals_recomputing_every_step(case, method):
    if is_void(case, "cached"):
        pytest.skip(VOID[case.model_type, "cached"])
    with nullcontext() if method == "bare" else reduced(case, method):
        cached, again = case.generate(case.single), case.generate(case.single, use_cache=False)
    assert torch.equal(cached.sequences, again.sequences)
    assert apart(cached.logits, again.logits) < TOLERANCE


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", ["bare", *METHODS])
def test_a_padded_batch_equals_its_members(case, method):
    if is_void(case, "batch"):
        pytest.skip(VOID[case.model_type, "batch"])
    with nullcontext() if method == "bare" else reduced(case, method):
        together = case.generate(case.both)
        alone = [case.generate(inputs) for inputs in case.alone]
    allowed = TOLERANCES.get(case.model_type, TOLERANCE)
    for row, one in enumerate(alone):
        mine = [step[row] for step in together.logits]
        assert apart(mine, [step[0] for step in one.logits]) < allowed


@pytest.mark.rotating(axis="spec", by="case", count=1)
@pytest.mark.parametrize("spec", REDUCERS)
def test_merging_equals_a_projector_that_gives_the_merged(case, spec):
    check_merging(case, spec, REDUCERS[spec], case.pair)


def test_merging_between_layers_equals_states_put_in_their_place(case):
    if case.model_type not in CUTS:
        pytest.skip("projector stage only")
    spec = f"pool(stage='decoder', layers=({case.first_cut},))"
    check_merging(case, spec, None, case.pair)


def test_merging_in_a_padded_batch_equals_a_projector_that_gives_the_merged(case):
    with compress(case.model, "pool", "50%") as c:
        short, report = case.logits(case.both)[:, -1], c.report()
        alone = [] if maskable(case) else [case.logits(one)[:, -1] for one in case.alone]
    allowed = TOLERANCES.get(case.model_type, TOLERANCE)
    if is_void(case, "batch") and not maskable(case):
        pytest.skip(VOID[case.model_type, "batch"])
    nothing = case.both["input_ids"][:, :0]
    pooled = Pooled(case, "pool", report, case.both)
    expected = pooled.logits(nothing) if maskable(case) else torch.cat(alone)
    assert (short - expected).abs().max() < allowed
    assert (short - case.bare_both[:, -1]).abs().amax(1).min() > 10 * allowed


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", ["divprune", "cut"])
def test_removing_leaves_nothing_behind(case, method):
    before = _state(case)
    with reduced(case, method):
        case.logits(case.single)
        assert _state(case) != before
    assert _state(case) == before
    assert torch.equal(case.logits(case.single), case.bare)


def _state(case: Case) -> dict[str, Any]:
    """Attributes and hooks of every module."""
    return {
        name: (
            set(vars(module)),
            id(vars(module).get("config")),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in case.model.named_modules()
    }
