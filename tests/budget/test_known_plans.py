"""Plans of layouts that came before are not searched again, and are those of a fresh planner."""

from vlmcompress.budget import planner as module
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.methods.composition.spec import parse
from vlmcompress.tokens import Grid


def planner():
    return Planner(parse("unit-drop+divprune"), Budget.parse("50%"), 12)


def test_a_layout_is_planned_once():
    one = planner()
    first, second = one.plan([Grid(1, 12, 12)] * 2)
    assert first is second
    assert first is one.plan([Grid(1, 12, 12)])[0]
    assert first == planner().plan([Grid(1, 12, 12)])[0]
    assert first != one.plan([Grid(1, 6, 24), Grid(1, 8, 8)])[1]


def test_another_budget_is_planned_anew():
    one = planner()
    one.plan([Grid(1, 12, 12)])
    half = one.at(75.0)
    assert half.plan([Grid(1, 12, 12)]) != one.plan([Grid(1, 12, 12)])


def test_what_an_upstream_method_left_is_not_remembered():
    one = planner()
    whole = one.plan([Grid(1, 12, 12)])[0]
    assert one.plan([Grid(1, 12, 12)], [[Grid(1, 9, 9)]])[0] != whole
    assert one.plan([Grid(1, 12, 12)])[0] == whole


def test_no_more_layouts_are_remembered_than_said(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    one = planner()
    for width in range(1, 9):
        one.plan([Grid(1, 4, width)])
    assert len(one._known) <= 3
