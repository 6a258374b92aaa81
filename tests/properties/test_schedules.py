"""Schedules of decoder methods: fewer tokens layer by layer, with a mean that meets the budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_line import tried

from vlmcompress.methods import get_method, list_methods
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.decoder import DecoderMethod, mean_tokens
from vlmcompress.methods.registry import METHODS
from vlmcompress.tokens import Grid

DECODERS = [
    info.name
    for info in list_methods()
    if info.package is None and issubclass(METHODS.get(info.name), DecoderMethod)
]
PIPELINES = ["divprune+fastv", "stride+pyramiddrop", "pool+feather", "tome(stage='projector')+dart"]


def falls(schedule: dict[int, int], layers: int, tokens: int) -> None:
    assert list(schedule) == sorted(schedule)
    assert all(1 <= layer < layers for layer in schedule)
    counts = [tokens, *schedule.values()]
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= 0


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 700), st.one_of(st.none(), st.integers(0, 700)))
def test_a_schedule_falls_and_its_mean_meets_the_budget(name, layers, tokens, budget):
    method = get_method("var(dims='llama-2-7b')" if name == "var" else name)
    schedule = tried(lambda: method.schedule(layers, tokens, budget))
    if schedule is None:
        return
    falls(schedule, layers, tokens)
    if budget is None or method.adaptive:
        return
    mean = mean_tokens(layers, tokens, schedule)
    if budget >= tokens:
        assert mean == tokens
    else:
        # Whole numbers: a token more or less in each layer behind the cuts.
        assert abs(mean - budget) <= 1


@pytest.mark.parametrize("spec", PIPELINES)
@settings(max_examples=60)
@given(
    st.integers(8, 40),
    st.integers(1, 24),
    st.integers(1, 24),
    st.floats(0.1, 1.0),
)
def test_a_composition_meets_the_budget_as_a_whole(spec, layers, height, width, share):
    grid = Grid(1, height, width)
    budget = max(1, round(share * len(grid)))
    plan = tried(lambda: parse(spec).plan(grid, layers, budget))
    if plan is None:
        return
    assert plan.given == len(grid)
    assert 0 < plan.keep <= len(grid)
    falls(plan.schedule, layers, plan.keep)
    assert plan.mean <= budget + 1
    assert max(plan.per_layer) == plan.keep
