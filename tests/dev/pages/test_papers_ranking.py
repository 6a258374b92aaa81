"""Rankings beside each other, by scipy and by hand."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from dev.pages.papers_published import Block
from dev.pages.papers_ranking import _signs, agreement, cells, tau_b


def block(paper, **rows):
    return Block(paper, "0000.00000", "own", {m: {"64": right} for m, right in rows.items()})


def scores(size=200, **right):
    """Of each method the first questions are right."""
    return {"64": {m: (np.arange(size) < count).astype(float) for m, count in right.items()}}


@pytest.mark.parametrize("levels", [3, 50])
def test_tau_is_scipys(levels):
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, levels, (2, 9)).astype(float)
        assert tau_b(_signs(a), _signs(b)) == pytest.approx(kendalltau(a, b).statistic)
    both = np.stack([a, -a])
    assert tau_b(_signs(both), _signs(b)).tolist() == pytest.approx(
        [kendalltau(one, b).statistic for one in both]
    )


def test_a_missing_method_leaves_no_pair():
    a, b = np.array([1.0, np.nan, 3.0, 2.0]), np.array([1.0, 9.0, 2.0, 3.0])
    there = np.isfinite(a)
    known = pytest.approx(kendalltau(a[there], b[there]).statistic)
    assert tau_b(_signs(a), _signs(b)) == known
    assert tau_b(_signs(b), _signs(a)) == known


def test_cells_are_what_both_have():
    published = [block("A", stride=90, pool=80, scope=70), block("B", stride=1, divprune=2)]
    measured = scores(stride=1, scope=2, divprune=3)
    found = cells(published, measured)
    assert [(cell.block.paper, cell.specs) for cell in found] == [
        ("A", ("stride", "scope")),
        ("B", ("stride", "divprune")),
    ]
    assert found[0].published.tolist() == [90, 70]
    assert [cell.block.paper for cell in cells(published, measured, ["divprune"])] == ["A"]
    assert cells(published, {"192": measured["64"]}) == []


def test_a_setting_stands_for_a_method():
    (found,) = cells([block("A", fastv=1, stride=2)], scores(**{"fastv(k=1)": 1, "stride": 2}))
    assert found.specs == ("fastv(k=1)", "stride")
    assert cells([block("A", fastv=1, stride=2)], scores(fastv=1, stride=2)) == []


ORDER = {"stride": 20, "pool": 60, "scope": 100, "divprune": 140}


@pytest.mark.parametrize(("sign", "tau", "same"), [(1, 1.0, 6), (-1, -1.0, 0)])
def test_the_same_order_and_the_reverse(sign, tau, same):
    measured = scores(**ORDER)
    of = cells([block("A", **{m: sign * right for m, right in ORDER.items()})], measured)
    found = agreement(of, measured)
    assert (found.tau, found.same, found.pairs) == (tau, same, 6)
    assert (found.interval.low, found.interval.high) == (tau, tau)
    # One of 24 orders of four methods is as good, and all are as good as the reverse.
    assert found.p == pytest.approx(1 / 24 if sign > 0 else 1, abs=0.015)


def test_pairs_stay_inside_their_block():
    """All of the second block is published higher and measured lower than all of the first."""
    published = [block("A", stride=1, pool=2), block("B", scope=98, divprune=99)]
    measured = scores(stride=120, pool=140, scope=20, divprune=40)
    found = agreement(cells(published, measured), measured)
    assert (found.tau, found.same, found.pairs) == (1.0, 2, 2)
    whole = [block("AB", stride=1, pool=2, scope=98, divprune=99)]
    assert agreement(cells(whole, measured), measured).tau == pytest.approx(-1 / 3)


def test_the_interval_is_of_the_questions():
    def of(size):
        rng = np.random.default_rng(1)
        rates = {"stride": 0.4, "pool": 0.5, "scope": 0.6, "divprune": 0.7}
        rows = {m: (rng.random(size) < rate).astype(float) for m, rate in rates.items()}
        return agreement(cells([block("A", **rates)], {"64": rows}), {"64": rows})

    few, many = of(40), of(4000)
    assert few.interval.high - few.interval.low > 0.5
    assert (many.interval.low, many.interval.high) == (1.0, 1.0)
    assert few == of(40), "the seed is fixed"


def test_questions_are_drawn_for_all_methods_alike():
    """One question more is right: that never changes the order, whichever are drawn."""
    measured = scores(size=40, stride=20, pool=20)
    measured["64"]["pool"] = measured["64"]["stride"].copy()
    measured["64"]["pool"][30] = 1
    found = agreement(cells([block("A", stride=1, pool=2)], measured), measured)
    assert (found.interval.low, found.interval.high) == (1.0, 1.0)


def test_close_pairs_can_be_passed_over():
    measured = scores(stride=20, pool=60, scope=100)
    of = cells([block("A", stride=90.0, pool=89.0, scope=97.0)], measured)
    assert (agreement(of, measured).same, agreement(of, measured).pairs) == (2, 3)
    found = agreement(of, measured, apart=1.5)
    assert (found.tau, found.same, found.pairs) == (1.0, 2, 2)
    assert agreement(of, measured, apart=1.0).pairs == 3, "exactly as far apart is far enough"


def test_ties_alone_say_nothing():
    measured = scores(stride=20, pool=20)
    found = agreement(cells([block("A", stride=1, pool=2)], measured), measured)
    assert (found.tau, found.interval, found.p) == (None, None, None)
    assert (found.same, found.pairs) == (0, 1)


def test_results_are_exchanged_at_all_budgets_together():
    """Three budgets of the same two orders are no more evidence than one."""
    at = scores(**ORDER)["64"]
    measured = {"192": at, "128": at, "64": at}
    rows = {m: dict.fromkeys(measured, right) for m, right in ORDER.items()}
    of = cells([Block("A", "0", "own", rows)], measured)
    assert agreement(of, measured).pairs == 18
    assert agreement(of, measured).p == pytest.approx(1 / 24, abs=0.015)
