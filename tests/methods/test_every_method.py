"""What holds for every registered method, at the edges above all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from shown import Layer, asked_of, make, methods, tokens

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods import DecoderMethod, Reducer, Selector
from vlmcompress.methods.contracts.decoder import mean_tokens, tokens_per_layer
from vlmcompress.tokens import Grid

GRIDS = [Grid(1, 1, 1), Grid(1, 4, 4), Grid(1, 3, 5), Grid(1, 1, 7), Grid(4, 3, 3), Grid(1, 6, 6)]
SELECTORS, REDUCERS = methods(Selector), methods(Reducer)
DECODER = methods(DecoderMethod)
TEXT = {"text", "relevance"}


@pytest.fixture
def method(request, tmp_path_factory):
    return make(request.param, tmp_path_factory)


def on_methods(names):
    return pytest.mark.parametrize("method", names, indirect=True)


def picks(method, shown, count):
    """Indices of a selector, groups of a reducer."""
    if isinstance(method, Reducer):
        return method.reduce(shown, count).groups()
    return method.select(shown, count).tolist()


def check_reduction(reduction, shown, count):
    groups, features = reduction.groups(), reduction.features
    assert features.shape == (count, shown.features.shape[1])
    assert features.dtype == shown.features.dtype
    assert features.isfinite().all()
    places = reduction.anchors.tolist()
    assert places == sorted(set(places))
    assert all(place in group for place, group in zip(places, groups, strict=True))
    assert all(group == sorted(set(group)) and group for group in groups)
    assert {i for group in groups for i in group} <= set(range(len(shown.grid)))


@pytest.mark.parametrize("grid", [Grid(1, 6, 6), Grid(3, 4, 4)], ids=str)
@on_methods([*SELECTORS, *REDUCERS])
def test_places_go_by_the_grid_as_far_as_a_method_says(method, grid):
    count, found = method.keep_count(grid, len(grid) // 2), set()
    for seed in range(4):
        shown = asked_of(method, tokens(grid, seed=seed))
        if isinstance(method, Reducer):
            found.add(tuple(method.reduce(shown, count).anchors.tolist()))
        else:
            found.add(tuple(method.select(shown, count).tolist()))
    assert (len(found) == 1) == method.goes_by(grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@on_methods(SELECTORS)
def test_selectors_keep_exactly_what_is_asked(method, grid):
    shown = asked_of(method, tokens(grid))
    budgets = {1, 2, len(grid) // 2, len(grid) - 1, len(grid)} - {0}
    if method.adaptive:  # asked for all, it follows its own rule
        budgets = {budget for budget in budgets if budget < len(grid)}
        assert len(method.select(shown, method.keep_count(grid, None))) <= len(grid)
    for budget in budgets:
        count = method.keep_count(grid, budget)
        assert count == min(budget, len(grid))
        kept = method.select(shown, count)
        assert kept.dtype == torch.int64
        assert len(kept) == count
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert 0 <= int(kept[0]) <= int(kept[-1]) < len(grid)
    assert method.select(shown, 0).tolist() == []
    everything = method.select(shown, len(grid) + 5).tolist()
    assert everything == list(range(len(grid))) or method.adaptive


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@on_methods(REDUCERS)
def test_reducers_make_what_they_announce(method, grid):
    shown = asked_of(method, tokens(grid))
    made = []
    for budget in range(1, len(grid) + 1):
        try:
            count = method.keep_count(grid, budget)
        except BudgetError:  # one token a frame is the least for some
            assert budget < grid.t
            continue
        assert 0 < count <= budget
        made.append(count)
        check_reduction(method.reduce(shown, count), shown, count)
    assert made == sorted(made)
    assert made[-1] == len(grid)


ODD = {
    "constant features": lambda x: torch.ones_like(x),
    "zero features": lambda x: torch.zeros_like(x),
    "duplicates": lambda x: x[torch.arange(len(x)) // 3 * 3],
    "one zero row": lambda x: torch.cat([torch.zeros_like(x[:1]), x[1:]]),
}


@pytest.mark.parametrize("change", list(ODD))
@on_methods(SELECTORS + REDUCERS)
def test_odd_features_still_give_the_count(method, change):
    grid = Grid(1, 4, 5)
    plain = tokens(grid)
    shown = asked_of(method, replace(plain, features=ODD[change](plain.features)))
    for budget in (1, 7, 19):
        count = method.keep_count(grid, budget)
        if isinstance(method, Reducer):
            check_reduction(method.reduce(shown, count), shown, count)
        else:
            assert len(set(method.select(shown, count).tolist())) == count


def flat(shown):
    """All signals without any difference between tokens."""
    same = {
        name: {layer: torch.ones_like(value) for layer, value in found.items()}
        for name in ("encoder_attention", "layer_keys", "layer_cls_attention")
        if (found := getattr(shown, name)) is not None
    }
    same |= {
        name: torch.ones_like(found)
        for name in ("features", "cls_attention", "keys", "relevance", "text")
        if (found := getattr(shown, name)) is not None
    }
    return replace(shown, **same)


@on_methods(SELECTORS + REDUCERS)
def test_tokens_that_are_all_alike_still_give_the_count(method):
    grid = Grid(2, 3, 3)
    shown = flat(asked_of(method, tokens(grid)))
    count = method.keep_count(grid, 8)
    assert len(picks(method, shown, count)) == count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@on_methods(SELECTORS + REDUCERS)
def test_half_precision_gives_the_picks_of_its_float32_cast(method, dtype):
    grid = Grid(2, 4, 4)
    half = tokens(grid, seed=1)
    names = ("features", "text", "keys", "vocabulary")
    half = replace(half, **{name: getattr(half, name).to(dtype) for name in names})
    half = replace(
        half, layer_keys={layer: keys.to(dtype) for layer, keys in half.layer_keys.items()}
    )
    whole = replace(half, **{name: getattr(half, name).float() for name in names})
    whole = replace(whole, layer_keys={n: keys.float() for n, keys in half.layer_keys.items()})
    count = method.keep_count(grid, 10)
    found = [picks(method, asked_of(method, shown), count) for shown in (half, whole)]
    assert found[0] == found[1]


@on_methods(SELECTORS + REDUCERS)
def test_the_same_again_and_inputs_untouched(method):
    grid = Grid(1, 5, 5)
    shown = asked_of(method, tokens(grid, seed=2))
    before = shown.features.clone()
    state = torch.get_rng_state()
    count = method.keep_count(grid, 9)
    assert picks(method, shown, count) == picks(method, asked_of(method, tokens(grid, 2)), count)
    assert torch.equal(shown.features, before)
    assert torch.equal(torch.get_rng_state(), state)


BLIND = {"random", "stride"}
"""They look at no feature."""


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@on_methods([name for name in SELECTORS + REDUCERS if name not in BLIND])
def test_what_is_not_finite_is_one_clear_error(method, bad):
    grid = Grid(1, 4, 4)
    shown = asked_of(method, tokens(grid))
    broken = {
        name: value.clone().index_fill_(0, torch.tensor([3]), bad)
        for name in ("features", "cls_attention", "keys", "relevance", "question_logits")
        if (value := getattr(shown, name)) is not None
    }
    for name in ("encoder_attention", "layer_keys", "layer_cls_attention"):
        if getattr(shown, name) is not None:
            broken[name] = {
                layer: value.clone().index_fill_(0, torch.tensor([3]), bad)
                for layer, value in getattr(shown, name).items()
            }
    if shown.projection is not None:
        inputs = shown.projection.inputs.clone()
        inputs[3] = bad
        broken["projection"] = replace(shown.projection, inputs=inputs)
    shown = replace(shown, **broken)
    with pytest.raises(VLMCompressError, match=r"(?i)finite|NaN") as error:
        picks(method, shown, method.keep_count(grid, 5))
    assert "\n" not in str(error.value)


def guided(name):
    return any(TEXT & set(need.split("|")) for need in make_needs(name))


def make_needs(name):
    from vlmcompress.methods.registry import METHODS

    return METHODS.get(name).needs


@on_methods([name for name in SELECTORS + REDUCERS if guided(name)])
def test_without_a_question_methods_that_read_it_say_so(method):
    grid = Grid(1, 4, 4)
    shown = asked_of(method, tokens(grid))
    shown = replace(shown, relevance=None, text=torch.zeros(0, shown.features.shape[1]))
    with pytest.raises(VLMCompressError, match=method.name):
        picks(method, shown, method.keep_count(grid, 5))


@pytest.mark.parametrize("layers", [6, 28, 32, 40])
@on_methods(DECODER)
def test_schedules_fall_and_meet_every_budget_that_they_accept(method, layers):
    met = 0
    for count in (1, 7, 100, 576):
        for budget in {count, 3 * count // 4, count // 2, count // 4, 1} - {0}:
            try:
                schedule = method.schedule(layers, count, budget)
            except BudgetError:
                assert budget < count
                continue
            met += 1
            assert all(1 <= layer < layers for layer in schedule)
            per_layer = tokens_per_layer(layers, count, schedule)
            assert per_layer == sorted(per_layer, reverse=True)
            assert min(per_layer) >= 0
            mean = mean_tokens(layers, count, schedule)
            assert mean <= budget + 1
            assert method.adaptive or mean >= budget - 1
            if budget == count:
                assert mean == count
    assert met


@pytest.mark.parametrize(
    "grid", [Grid(1, 1, 1), Grid(1, 4, 4), Grid(1, 3, 7), Grid(3, 2, 2)], ids=str
)
@pytest.mark.parametrize("kind", ["random", "constant"])
@on_methods(DECODER)
def test_cuts_keep_the_count_in_order(method, kind, grid):
    view = Layer(grid, constant=kind == "constant")
    for count in {0, 1, len(grid) // 2, len(grid)}:
        kept = method.keep(view, count).tolist()
        assert kept == sorted(set(kept))
        assert all(0 <= place < len(grid) for place in kept)
        assert len(kept) == count or method.adaptive
        assert len(kept) <= max(count, 0) or method.adaptive


@on_methods(DECODER)
def test_cuts_go_on_from_what_an_earlier_one_left(method):
    view = Layer(Grid(1, 4, 4), survivors=(1, 4, 5, 9, 12, 15))
    kept = method.keep(view, 3).tolist()
    assert kept == sorted(set(kept))
    assert all(0 <= place < 6 for place in kept)
    assert len(kept) == 3 or method.adaptive


@on_methods([name for name in DECODER if name != "todre-exit"])
def test_an_attention_of_nan_is_one_clear_error(method):
    with pytest.raises(VLMCompressError, match=r"NaN|finite") as error:
        method.keep(Layer(Grid(1, 4, 4), nan=True), 5)
    assert "\n" not in str(error.value)


def test_every_method_is_described_for_tables():
    from vlmcompress.methods import list_methods
    from vlmcompress.methods.registry import METHODS

    for info in list_methods():
        assert info.summary
        assert len(info.summary) < 90
        assert not info.summary.endswith(".")
        json.dumps(dict(info.options))
        assert (METHODS.get(info.name).__doc__ or "").strip()
