"""Budgets: what is understood, what is refused, what it comes to."""

import pytest

from vlmcompress.budget import Budget, Planner
from vlmcompress.errors import BudgetError
from vlmcompress.methods.pipeline import parse
from vlmcompress.tokens import Grid


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
        (0.25, "not a whole number"),
        ("1e3", "not understood"),
        ("", "not understood"),
        ("25 percent", "not understood"),
        ("nan", "not understood"),
        (float("inf"), "not understood"),
        (None, "not understood"),
        (True, "not understood"),
        ([64], "not understood"),
    ],
)
def test_refused(given, words):
    with pytest.raises(BudgetError, match=words) as raised:
        Budget.parse(given)
    assert repr(given) in str(raised.value)


def test_tokens_of_one_image():
    grid = Grid(1, 12, 12)
    assert Budget.parse("25%").tokens(grid) == 36
    assert Budget.parse("0.1%").tokens(grid) == 1
    assert Budget.parse(200).tokens(grid) == 144
    assert str(Budget.parse("12.5%")) == "12.5%"
    assert str(Budget.parse(64)) == "64"


def test_a_budget_above_one_small_image_keeps_it_whole_but_above_all_is_an_error():
    planner = Planner(parse("stride"), Budget.parse(100), 4)
    small, large = planner([Grid(1, 6, 6), Grid(1, 12, 12)])
    assert (small.keep, large.keep) == (36, 100)
    with pytest.raises(BudgetError, match="above the 36 visual tokens of the image"):
        planner([Grid(1, 6, 6)])


def test_the_paper_s_default_without_a_budget():
    (plan,) = Planner(parse("fastv"), None, 32)([Grid(1, 24, 24)])
    assert plan.per_layer == [576] * 2 + [288] * 30
    assert plan.mean == 306
