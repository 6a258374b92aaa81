"""Budgets: what is understood, what is refused, what it comes to."""

import numpy as np
import pytest
import torch

from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import BudgetError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.tokens import Grid, Layout


@pytest.mark.parametrize(
    ("given", "amount", "unit"),
    [
        (64, 64, "tokens"),
        ("64", 64, "tokens"),
        (64.0, 64, "tokens"),
        (" 25% ", 25, "percent"),
        ("12.5 %", 12.5, "percent"),
        (".5%", 0.5, "percent"),
        ("100%", 100, "percent"),
        ("0.4 flops", 0.4, "flops"),
        ("1flops", 1, "flops"),
        (" 120 ms ", 120, "ms"),
        ("12.5ms", 12.5, "ms"),
        (1, 1, "tokens"),
        ("1", 1, "tokens"),
        (np.int64(64), 64, "tokens"),
        (np.uint8(64), 64, "tokens"),
        (np.array(64), 64, "tokens"),
        (torch.tensor(64), 64, "tokens"),
        (np.float32(64), 64, "tokens"),
        (torch.tensor(64.0), 64, "tokens"),
        (10**12, 10**12, "tokens"),
        (1.0, 100, "percent"),
        ("1.0", 100, "percent"),
        (0.25, 25, "percent"),
        ("0.25", 25, "percent"),
        (".25", 25, "percent"),
        (0.07, 7, "percent"),
        (1e-05, 0.001, "percent"),
        (np.float64(0.25), 25, "percent"),
        (torch.tensor(0.25), 25, "percent"),
        ("64.0", 64, "tokens"),
    ],
)
def test_understood(given, amount, unit):
    assert Budget.parse(given) == Budget(amount, unit)
    assert Budget.parse(Budget.parse(given)) == Budget(amount, unit)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (0, "above zero"),
        (-1, "above zero"),
        ("0%", "above zero"),
        ("100.5%", "above 100%"),
        (1.25, "not a whole number of tokens, and no share of them up to 1.0"),
        ("64.5", "not a whole number"),
        (0.0, "above zero"),
        ("-0.25", "above zero"),
        (np.bool_(True), "not understood"),
        (torch.tensor(True), "not understood"),
        (torch.tensor([64]), "not understood"),
        (1j, "not understood"),
        (float("nan"), "not understood"),
        ("inf ms", "not understood"),
        (float("-inf"), "not understood"),
        (1e300, "more than there can be"),
        ("1e3", "not understood"),
        ("", "not understood"),
        ("25 percent", "not understood"),
        ("nan", "not understood"),
        (float("inf"), "not understood"),
        (None, "not understood"),
        (True, "not understood"),
        ([64], "not understood"),
        ("0 flops", "above zero"),
        ("1.01 flops", "more than the full model computes: give above 0 to 1"),
        ("-3 ms", "above zero"),
        ("0.4 flop", "not understood"),
        ("40% flops", "not understood"),
        ("0.4 flops per frame", "not understood"),
        ("120 s", 'not understood.*"120 ms"'),
    ],
)
def test_refused(given, words):
    with pytest.raises(BudgetError, match=words) as raised:
        Budget.parse(given)
    assert repr(given) in str(raised.value)


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("unit", [None, "", "%", " ms", " per frame", ".5"])
def test_numbers_of_many_digits_are_refused_in_one_line(digits, unit):
    given = 10**digits - 1 if unit is None and digits < 4000 else 10**digits
    given = given if unit is None else "9" * digits + unit
    for one in (given, -given) if unit is None else (given,):
        with pytest.raises(BudgetError) as raised:
            Budget.parse(one)
        assert len(str(raised.value)) < 330
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given", [1234567, "0.00001%", "33.333333333%", 0.07, 1.0, "0.123456789 ms"]
)
def test_what_is_printed_reads_the_same(given):
    budget = Budget.parse(given)
    assert Budget.parse(str(budget)) == budget
    assert "e" not in str(budget)


def test_tokens_of_one_image():
    grid = Grid(1, 12, 12)
    assert Budget.parse("25%").tokens(grid) == 36
    assert Budget.parse("0.1%").tokens(grid) == 1
    assert Budget.parse(200).tokens(grid) == 144
    assert str(Budget.parse("12.5%")) == "12.5%"
    assert str(Budget.parse(64)) == "64"


@pytest.mark.parametrize("given", ["0.4 flops", "120 ms"])
def test_a_cost_is_no_number_of_tokens(given):
    budget = Budget.parse(given)
    assert budget.is_cost
    assert str(budget) == given
    assert Budget.parse(str(budget)) == budget
    with pytest.raises(BudgetError, match=f"budget {given} becomes a number .* with a model"):
        budget.tokens(Grid(1, 12, 12))
    assert not Budget.parse("25%").is_cost


def test_a_count_above_an_image_keeps_it_whole_but_above_every_possible_one_is_an_error():
    planner = Planner(parse("stride"), Budget.parse(100), 4)
    small, large = planner.plan([Grid(1, 6, 6), Grid(1, 12, 12)])
    assert (small.keep, large.keep) == (36, 100)
    (alone,) = planner.plan([Grid(1, 6, 6)])
    assert alone == small
    assert "above its 36 tokens: all are kept" in planner.notes(Grid(1, 6, 6), alone)[0]
    assert not planner.notes(Grid(1, 12, 12), large)
    planner.check(None)
    planner.check(100)
    with pytest.raises(BudgetError, match="above the 99 visual tokens that an image"):
        planner.check(99)


@pytest.mark.parametrize("spec", ["tome", "pitome"])
def test_a_token_of_each_frame_is_the_least_that_a_tower_leaves(spec):
    clip = Grid(4, 3, 3)
    for given in (3, "3%"):
        planner = Planner(parse(spec), Budget.parse(given), 4)
        with pytest.raises(BudgetError, match=r"each of 4 frames, .*: give 4 tokens or more"):
            planner.plan([clip])
        with pytest.raises(BudgetError, match="each of 4 frames"):
            planner.upstream(Grid(1, 3, 3), clip)
    (plan,) = Planner(parse(spec), Budget.parse(4), 4).plan([clip])
    assert plan.keep == 4
    (plan,) = Planner(parse(f"{spec}+divprune"), Budget.parse(3), 4).plan([clip])
    assert plan.keep == 3


def test_a_method_that_drops_nothing_says_so():
    evs = Planner(parse("evs"), None, 4)
    (plan,) = evs.plan([Grid(1, 3, 3)])
    assert evs.notes(Grid(1, 3, 3), plan) == [
        "without a budget evs keeps all tokens of 3x3: give one"
    ]
    (plan,) = evs.plan([Grid(8, 3, 3)])
    assert not evs.notes(Grid(8, 3, 3), plan)
    full = Planner(parse("full"), None, 4)
    assert not full.notes(Grid(1, 3, 3), full.plan([Grid(1, 3, 3)])[0])


def test_the_paper_s_default_without_a_budget():
    (plan,) = Planner(parse("fastv"), None, 32).plan([Grid(1, 24, 24)])
    assert plan.per_layer == [576] * 2 + [288] * 30
    assert plan.mean == 306


@pytest.mark.parametrize(
    ("given", "amount", "unit"),
    [
        ("16 per frame", 16, "tokens"),
        ("25% per  frame", 25, "percent"),
        (" 4 per frame ", 4, "tokens"),
    ],
)
def test_per_frame_is_understood(given, amount, unit):
    budget = Budget.parse(given)
    assert budget == Budget(amount, unit, per_frame=True)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "given", ["16 per", "16per frame", "per frame", "16 frame", "16 per frames"]
)
def test_malformed_per_frame(given):
    with pytest.raises(BudgetError, match=r"not understood.*16 per frame"):
        Budget.parse(given)


def test_tokens_of_a_clip_per_frame():
    clip, image = Grid(6, 5, 5), Grid(1, 5, 5)
    assert Budget.parse("4 per frame").tokens(clip) == 24
    assert Budget.parse("30% per frame").tokens(clip) == 6 * 8
    assert Budget.parse("30%").tokens(clip) == 45
    assert Budget.parse("1% per frame").tokens(clip) == 6
    assert Budget.parse("100 per frame").tokens(clip) == 150
    for given in ("4", "30%"):
        assert Budget.parse(f"{given} per frame").tokens(image) == Budget.parse(given).tokens(image)


def test_per_frame_limits_are_those_of_a_frame():
    planner = Planner(parse("stride"), Budget.parse("26 per frame"), 4)
    for grid in (Grid(6, 5, 5), Grid(1, 5, 5)):
        (plan,) = planner.plan([grid])
        assert plan.keep == len(grid)
        (note,) = planner.notes(grid, plan)
        assert note == f"the budget of 26 per frame is above its {len(grid)} tokens: all are kept"
    (plan,) = planner.plan([Grid(6, 6, 6)])
    assert (plan.keep, planner.notes(Grid(6, 6, 6), plan)) == (156, [])


@pytest.mark.parametrize("spec", ["stride", "divprune", "random", "pool"])
def test_each_frame_keeps_the_same_number(spec):
    (plan,) = Planner(parse(spec), Budget.parse("8 per frame"), 4).plan([Grid(6, 5, 5)])
    assert [grid for grid, _ in plan.parts] == [Grid(1, 5, 5)] * 6
    assert len({kept for _, kept in plan.parts}) == 1
    assert 0 < plan.keep <= 48
    (image,) = Planner(parse(spec), Budget.parse("8 per frame"), 4).plan([Grid(1, 5, 5)])
    assert image == Planner(parse(spec), Budget.parse("8"), 4).plan([Grid(1, 5, 5)])[0]


def test_a_composition_keeps_the_same_number_of_each_frame_and_meets_the_whole_budget():
    (plan,) = Planner(parse("divprune+fastv(k=1)"), Budget.parse("7 per frame"), 4).plan(
        [Grid(6, 5, 5)]
    )
    assert len({kept for _, kept in plan.parts}) == 1
    assert plan.keep > 42 > plan.schedule[1]
    assert plan.mean == pytest.approx(42, abs=0.5)


def test_images_in_tiles_mean_the_same_per_frame():
    layout = Layout.of(Grid(1, 4, 4), Grid(1, 4, 4), Grid(1, 4, 4))
    for given in ("10", "33%"):
        plans = [
            Planner(parse("stride"), Budget.parse(g), 4).plan([layout])
            for g in (given, f"{given} per frame")
        ]
        assert plans[0] == plans[1]


def test_a_decoder_method_ranks_the_clip_as_a_whole():
    (plan,) = Planner(parse("fastv(k=1)"), Budget.parse("10 per frame"), 4).plan([Grid(6, 5, 5)])
    assert plan.keep == 150
    assert plan.mean == pytest.approx(60, abs=0.5)
