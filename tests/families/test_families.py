"""The laws, for every model type: nothing may change but the tokens that are gone."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers
from model_case import Case, case_of
from references import masked, shortened, staged
from scope import CUTS, DOZEN, TESTED_HERE, TOLERANCES, VOID

from vlmcompress.api import compress
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.fastv import FastV
from vlmcompress.patches.families.table import BROKEN

TOLERANCE = 1e-4
STATEFUL = ("linear_attention", "conv", "mamba", "hybrid")
"""Kinds of layers that carry a state along the tokens, so that masking is not dropping."""


@dataclass(frozen=True)
class EverySecond(FastV):
    """Looks at nothing, so that only the cut itself is tested."""

    name: ClassVar[str] = "every-second"

    def score(self, view: LayerView) -> torch.Tensor:
        places = torch.arange(len(view.visual))
        return (places * 7919 % 13).float() + places * 1e-3


@dataclass(frozen=True)
class Watching(EverySecond):
    """The same, and remembers what it was shown."""

    shown: ClassVar[list[torch.Tensor]] = []

    def score(self, view: LayerView) -> torch.Tensor:
        self.shown.append(view.attention(rows="last", of="previous"))
        return super().score(view)


def attention_of(layer: Any) -> Any:
    """The module of a layer that gives attention weights beside its output."""
    names = ("self_attn", "attn", "attention", "mixer")
    return next(found for name in names if (found := getattr(layer, name, None)) is not None)


@pytest.fixture(
    scope="module",
    params=[t if t in DOZEN else pytest.param(t, marks=pytest.mark.slow) for t in TESTED_HERE],
)
def case(request: Any) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = case_of(request.param)
        if (request.param, transformers.__version__) in BROKEN:
            with pytest.raises(AttributeError):
                found.logits(found.single)
            pytest.skip(BROKEN[request.param, transformers.__version__])
        return found


def reduced(case: Case, method: str) -> Any:
    """A compressed model at half of its tokens."""
    if method != "cut":
        return compress(case.model, method, budget="50%")
    if case.model_type not in CUTS:
        pytest.skip("projector stage only")
    return compress(case.model, EverySecond(k=case.first_cut, ratio=0.5))


def maskable(case: Case) -> bool:
    """Whether tokens act on others through attention only."""
    stateful = any(kind.startswith(STATEFUL) for kind in case.kinds)
    return not (stateful or is_void(case, "masked"))


def is_void(case: Case, law: str) -> bool:
    """Whether the bare model does not keep a law; the table must say so, and why."""
    return (case.model_type, law) in VOID


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


def test_scores_are_the_attention_of_the_layer_before_the_cut(case):
    if case.model_type not in CUTS:
        pytest.skip("projector stage only")
    method, seen = Watching(k=case.first_cut, ratio=0.5), []
    if is_void(case, "scores"):
        pytest.skip(VOID[case.model_type, "scores"])
    attention = attention_of(case.parts.layers[case.first_cut - 1])
    handle = attention.register_forward_hook(lambda *call: seen.append(call[-1][1]))
    with compress(case.model, method):
        case.logits(case.single)
    handle.remove()
    (weights,) = seen
    assert weights.dim() == 4
    assert (method.shown[-1] - weights[0, :, -1:]).abs().max() < 1e-5


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", ["divprune", "cut"])
def test_removing_leaves_nothing_behind(case, method):
    before = _state(case)
    with reduced(case, method):
        case.logits(case.single)
        assert _state(case) != before
    assert _state(case) == before
    assert torch.equal(case.logits(case.single), case.bare)


def apart(one: Any, other: Any) -> float:
    """The largest difference of the logits of all steps."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


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
