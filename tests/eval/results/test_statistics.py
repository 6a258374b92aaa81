"""Intervals and tests agree with other libraries, with brute force and with figures by hand."""

import itertools

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.results.statistics import (
    Interval,
    holm,
    mean_difference,
    mean_of,
    paired_test,
    proportion,
    retained,
    wording_gap,
)


def table(both, lost, won, neither):
    """Scores (method, full) with so many questions of each sort."""
    method = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    full = [1.0] * both + [1.0] * lost + [0.0] * won + [0.0] * neither
    return np.array(method), np.array(full)


def by_flipping_all(differences, alternative):
    """p of the sum of differences over all 2^d choices of their signs."""
    signs = itertools.product((-1, 1), repeat=len(differences))
    sums = np.array([np.dot(sign, differences) for sign in signs])
    seen = sum(differences)
    less, greater = np.mean(sums <= seen + 1e-9), np.mean(sums >= seen - 1e-9)
    sides = {"less": less, "greater": greater, "two-sided": min(1, 2 * min(less, greater))}
    return sides[alternative]


TABLES = [(9, 0, 1, 2), (40, 8, 1, 3), (0, 5, 5, 0), (3, 0, 7, 50), (20, 6, 4, 0), (0, 12, 0, 0)]


class TestPairedTest:
    @pytest.mark.parametrize("cells", TABLES)
    def test_binary_scores_get_mcnemars_exact_p(self, cells):
        both, lost, won, neither = cells
        expected = mcnemar([[both, lost], [won, neither]], exact=True).pvalue
        assert paired_test(*table(*cells)) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("cells", TABLES)
    @pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
    def test_binary_scores_get_the_share_of_all_sign_flips(self, cells, alternative):
        a, b = table(*cells)
        expected = by_flipping_all((a - b)[a != b], alternative)
        assert paired_test(a, b, alternative=alternative) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
    def test_other_scores_get_the_share_of_all_sign_flips(self, alternative):
        b = np.array([1, 1, 0.7, 0.5, 0.9, 0.2, 1, 0.6, 0.4, 0.3])
        a = np.array([0.5, 0.9, 0.1, 0.6, 0.9, 0.2, 0.3, 0.2, 0.6, 0.2])
        expected = by_flipping_all((a - b)[a != b], alternative)
        # Four standard errors of the share of 49999 flips.
        noise = 4 * np.sqrt(expected * (1 - expected) / 49_999)
        assert paired_test(a, b, alternative=alternative) == pytest.approx(expected, abs=noise)

    def test_less_asks_whether_the_first_is_worse(self):
        worse, full = table(80, 12, 2, 6)
        assert paired_test(worse, full, alternative="less") < 0.01
        assert paired_test(worse, full, alternative="greater") > 0.99
        assert paired_test(worse / 2, full / 2, alternative="less") < 0.01

    @pytest.mark.parametrize("value", [0.0, 1.0, 0.4])
    def test_nothing_differs(self, value):
        scores = np.full(30, value)
        assert paired_test(scores, scores) == 1.0
        assert paired_test(scores, scores, alternative="less") == 1.0

    def test_other_scores_can_be_significant_after_a_correction_for_hundreds(self):
        full = np.ones(100)
        assert 250 * paired_test(full * 2 / 3, full) < 0.05


class TestProportion:
    @pytest.mark.parametrize(("right", "n"), [(0, 20), (1, 60), (30, 60), (499, 500), (7, 7)])
    def test_binary_scores_get_wilsons_interval(self, right, n):
        found = proportion(np.repeat([1.0, 0.0], [right, n - right]))
        low, high = proportion_confint(right, n, method="wilson")
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)

    def test_other_scores_lie_around_their_mean(self):
        scores = np.tile([0, 1 / 3, 2 / 3, 1], 50)
        found = proportion(scores)
        half = 1.96 * scores.std() / np.sqrt(200)
        assert found.low == pytest.approx(0.5 - half, abs=0.01)
        assert found.high == pytest.approx(0.5 + half, abs=0.01)

    def test_equal_scores_have_no_interval_of_no_width(self):
        found = proportion(np.full(60, 0.5))
        unseen = 1 - 0.025 ** (1 / 60)
        assert found.low == pytest.approx(0.5 - 0.5 * unseen)
        assert found.high == pytest.approx(0.5 + 0.5 * unseen)


class TestMeanDifference:
    def test_lies_around_the_difference(self):
        found = mean_difference(*table(300, 100, 40, 60))
        half = 1.96 * np.sqrt(140 / 500 - 0.12**2) / np.sqrt(500)
        assert found.low == pytest.approx(-0.12 - half, abs=0.006)
        assert found.high == pytest.approx(-0.12 + half, abs=0.006)

    @pytest.mark.parametrize("n", [1, 60, 500])
    def test_no_question_differs(self, n):
        _, unseen = proportion_confint(0, n, method="beta")
        assert mean_difference(*table(n, 0, 0, 0)) == Interval(
            pytest.approx(-unseen), pytest.approx(unseen)
        )

    def test_every_question_is_lost(self):
        _, unseen = proportion_confint(0, 60, method="beta")
        found = mean_difference(*table(0, 60, 0, 0))
        assert (found.low, found.high) == pytest.approx((-1, -1 + 2 * unseen))

    def test_one_lost_question_does_not_exclude_no_difference(self):
        found = mean_difference(*table(499, 1, 0, 0))
        assert found.low < -1 / 500 < 0 < found.high


class TestHolm:
    def test_by_hand(self):
        # Ascending 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, none below the one before.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_not_above_one(self):
        assert holm([0.9, 0.8]) == [1.0, 1.0]

    def test_one_and_none(self):
        assert holm([0.03]) == pytest.approx([0.03])
        assert holm([]) == []


class TestRetained:
    blind = np.repeat([1.0, 0.0], [30, 70])
    full = np.repeat([1.0, 0.0], [90, 10])

    def test_by_hand(self):
        share, interval = retained(np.repeat([1.0, 0.0], [75, 25]), self.blind, self.full)
        assert share == pytest.approx(0.45 / 0.6)
        assert 0.55 < interval.low < 0.75 < interval.high < 0.95

    def test_what_equals_full_or_blind_has_an_interval_of_some_width(self):
        share, interval = retained(self.full, self.blind, self.full)
        assert share == 1.0
        assert 0.9 < interval.low < 0.98
        assert 1.02 < interval.high < 1.1
        share, interval = retained(self.blind, self.blind, self.full)
        assert share == 0.0
        assert -0.1 < interval.low < -0.01 < 0.01 < interval.high < 0.1

    def test_questions_that_do_not_need_their_pictures_have_none(self):
        slightly = self.blind.copy()
        slightly[30:35] = 1.0
        assert paired_test(slightly, self.blind) > 0.05
        assert retained(self.full, self.blind, slightly) is None
        assert retained(self.full, self.full, self.blind) is None

    def test_resamples_without_a_gain_do_not_change_the_sign(self):
        blind = np.linspace(0.3, 0.4, 30)
        share, interval = retained(blind + 0.3, blind, blind + 0.05)
        assert share == pytest.approx(6)
        assert 0 < interval.low < 6 < interval.high < np.inf


class TestWordingGap:
    wordings = [0, 1] * 50

    def test_one_wording_loses(self):
        differences = np.tile([0.0, -1.0, 0.0, 0.0], 25)
        assert wording_gap(differences, self.wordings) < 0.01

    def test_both_lose(self):
        differences = np.tile([-1.0, -1.0, 0.0, 0.0], 25)
        assert wording_gap(differences, self.wordings) > 0.9

    def test_three_wordings(self):
        differences = np.tile([0.0, 0.0, -1.0, 0.0, 0.0, 0.0], 20)
        assert wording_gap(differences, [0, 1, 2] * 40) < 0.01

    def test_agrees_with_all_exchanges(self):
        differences = np.array([-1, -1, 0, -1, 0, 0, 1, 0.5])
        first = [sum(differences[list(four)]) for four in itertools.combinations(range(8), 4)]
        apart = np.abs(np.array(first) - sum(differences) / 2)
        expected = np.mean(apart >= apart[0] - 1e-9)
        assert wording_gap(differences, [0] * 4 + [1] * 4) == pytest.approx(expected)

    def test_agrees_with_all_orders_of_three_unlike_groups(self):
        differences = np.array([-1, -1, -0.5, 0.7, 0, 0, -0.2])
        wordings = (0, 0, 0, 1, 1, 2, 2)
        found = []
        for order in sorted(set(itertools.permutations(wordings))):
            parts = [differences[np.array(order) == wording] for wording in range(3)]
            means = np.repeat([part.mean() for part in parts], [len(part) for part in parts])
            found.append((order == wordings, means.var()))
        (seen,) = (between for same, between in found if same)
        expected = np.mean([between >= seen - 1e-9 for _, between in found])
        assert wording_gap(differences, wordings) == pytest.approx(expected)

    def test_a_wording_of_one_question_is_left_out(self):
        differences = np.tile([0.0, -1.0], 10)
        expected = wording_gap(differences, [0, 1] * 10)
        assert wording_gap(np.append(differences, 1.0), [0, 1] * 10 + [2]) == expected
        assert wording_gap(differences, [0] * 19 + [1]) == 1.0

    def test_nothing_to_compare(self):
        assert wording_gap(np.array([0.0, -1, 1]), [1, 1, 1]) == 1.0
        assert wording_gap(np.zeros(4), [0, 1, 0, 1]) == 1.0
        assert wording_gap(np.array([]), []) == 1.0

    def test_not_as_many(self):
        with pytest.raises(VLMCompressError, match="3 differences and 2 wordings"):
            wording_gap(np.zeros(3), [0, 1])


def test_the_same_again():
    rng = np.random.default_rng(5)
    a, b, c = rng.random((3, 80)) ** [[1], [3], [0.2]]
    for call in (
        lambda seed: proportion(a, seed=seed),
        lambda seed: mean_difference(a, b, seed=seed),
        lambda seed: paired_test(a, a[::-1], seed=seed),
        lambda seed: retained(a, b, c, seed=seed),
        lambda seed: wording_gap(a, [0, 1] * 40, seed=seed),
    ):
        assert call(0) == call(0)
        assert call(0) != call(1)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([np.zeros(3), np.zeros(4)], r"shape \[3\] and \[4\]"),
        ([np.zeros(0), np.zeros(0)], "at least one"),
        ([np.zeros((2, 2)), np.zeros((2, 2))], "one per question"),
        ([np.zeros(2), np.array([0, 1.5])], "a score is 1.5"),
        ([np.array([0, -0.1]), np.zeros(2)], "a score is -0.1"),
        ([np.array([0, np.nan]), np.zeros(2)], "a score is nan"),
    ],
)
def test_scores_that_cannot_be_compared(scores, says):
    for call in (mean_difference, paired_test, lambda a, b: retained(a, b, b)):
        with pytest.raises(VLMCompressError, match=says):
            call(*scores)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_a_difference_beyond_all_flips_survives_a_correction_for_thousands(alternative):
    """Flips alone would stop at two in their number, whatever the difference."""
    rng = np.random.default_rng(3)
    a = 0.9 * np.ones(300)
    b = rng.choice([0.1, 0.5, 0.9], 300)
    sides = 2 if alternative == "two-sided" else 1
    p = paired_test(a, b, alternative=alternative)
    assert sides * 0.5 ** int((a != b).sum()) <= p < 1e-12
    assert paired_test(b, a, alternative=alternative) == pytest.approx(p if sides == 2 else 1)


def test_few_questions_cannot_have_a_lower_p_than_all_their_flips():
    """Of eight equal differences the t-test would say 0; all 2^8 flips say 2 / 256."""
    a, b = np.full(8, 0.75), np.full(8, 0.5)
    assert paired_test(a, b) == pytest.approx(2 / 256, abs=0.002)
    assert paired_test(a, b, resamples=99) >= 2 / 256


def test_the_mean_of_values_without_bounds():
    rng = np.random.default_rng(0)
    values = rng.exponential(5.0, 400)
    interval = mean_of(values)
    error = values.std(ddof=1) / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=error / 4)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=error / 4)
    assert mean_of(values[:1]) is None
    assert mean_of(np.full(3, 7.0)) == Interval(7.0, 7.0)
