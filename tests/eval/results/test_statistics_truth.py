"""Intervals cover what is true, and tests err as seldom as they say, on data of a known source."""

import functools
import gc

import numpy as np
import pytest
from scipy import stats

from vlmcompress.eval.results.statistics import (
    holm,
    mean_difference,
    paired_test,
    proportion,
    retained,
    wording_gap,
)

# Simulations, a quarter of a minute together; test_statistics.py checks the same by hand.
pytestmark = pytest.mark.slow


RESAMPLES = 999
SETS = 400
LEAST = 5e-5
"""Probability of an outcome that is looked at."""


def scores_of(lost, won, n):
    """Scores (method, full) of which so many are lost and won."""
    method, full = np.zeros((2, n))
    full[:lost] = method[lost : lost + won] = 1
    return method, full


@functools.cache
def interval_of(lost, won, n):
    return mean_difference(*scores_of(lost, won, n), resamples=RESAMPLES)


@functools.cache
def p_of(lost, won, n):
    return paired_test(*scores_of(lost, won, n))


def covers(interval, truth):
    return interval.low - 1e-9 <= truth <= interval.high + 1e-9


def noise(rate, draws):
    """Three standard errors of a rate seen in so many draws."""
    return 3 * np.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [
        (20, 0.03, 0.01),
        (20, 0.1, 0.05),
        (60, 0.01, 0.0),
        (60, 0.01, 0.01),
        (60, 0.03, 0.01),
        (60, 0.05, 0.0),
        (200, 0.01, 0.01),
        (200, 0.05, 0.0),
        (500, 0.01, 0.0),
        (500, 0.01, 0.01),
    ],
)
def test_difference_is_covered_where_few_questions_differ(n, lost, won):
    """Exact: every outcome with its probability, so there is no noise to allow for.

    With few questions coverage jumps with the rate; some intervals are wider than they need be.
    """
    cells = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)])
    odds = stats.multinomial.pmf(cells, n, [lost, won, 1 - lost - won])
    likely = odds > LEAST
    truth = won - lost
    covered = [covers(interval_of(i, j, n), truth) for i, j, _ in cells[likely].tolist()]
    assert np.average(covered, weights=odds[likely]) >= 0.93


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(60, 0.1, 0.05), (60, 0.3, 0.05), (200, 0.1, 0.05), (200, 0.2, 0.2), (500, 0.3, 0.05)],
)
def test_difference_is_covered_as_often_as_said(n, lost, won):
    rng = np.random.default_rng(n)
    drawn = rng.multinomial(n, [lost, won, 1 - lost - won], size=SETS)
    covered = np.mean([covers(interval_of(i, j, n), won - lost) for i, j, _ in drawn.tolist()])
    # Differences of 60 questions are multiples of 1/60, hence a point of the upper bound.
    assert 0.95 - noise(0.95, SETS) <= covered <= 0.96 + noise(0.95, SETS)


@pytest.mark.parametrize("n", [60, 200])
def test_difference_of_means_of_three_runs_is_covered(n):
    rng = np.random.default_rng(n)
    full = rng.random((SETS, n)) < 0.9
    method = np.mean(rng.random((3, SETS, n)) < np.where(full, 0.7, 0.3), axis=0)
    truth = 0.9 * 0.7 + 0.1 * 0.3 - 0.9
    found = [mean_difference(a, b, resamples=RESAMPLES) for a, b in zip(method, full, strict=True)]
    covered = np.mean([covers(interval, truth) for interval in found])
    assert 0.95 - noise(0.95, SETS) <= covered <= 0.96 + noise(0.95, SETS)


@pytest.mark.parametrize("n", [60, 200, 500])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_proportion_is_covered(n, rate):
    """Exact, as above."""
    right = np.arange(n + 1)
    odds = stats.binom.pmf(right, n, rate)
    covered = sum(
        odds[k] for k in right[odds > LEAST] if covers(proportion((right[1:] <= k) * 1.0), rate)
    )
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize(("n", "kept"), [(60, 0.5), (200, 0.9), (200, 0.1), (200, 1.0)])
def test_retained_share_is_covered(n, kept):
    """A method that answers as `full` does on a share of the questions, and blindly on the rest."""
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(SETS):
        blind, again = rng.random((2, n)) < 0.3
        full = rng.random(n) < 0.8
        method = np.where(rng.random(n) < kept, full, again)
        found = retained(method, blind, full, resamples=399)
        covered.append(found is not None and covers(found[1], kept))
    assert np.mean(covered) >= 0.93 - noise(0.93, SETS)
    if kept < 1:
        assert np.mean(covered) <= 0.97 + noise(0.97, SETS)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_mcnemar_errs_at_most_as_often_as_it_says(rate):
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(200, [rate, rate, 1 - 2 * rate], size=4000)[:, :2]
    found = np.array([p_of(lost, won, 200) for lost, won in drawn.tolist()])
    for level in (0.01, 0.05, 0.2):
        assert np.mean(found <= level) <= level + noise(level, len(found))


def test_sign_flips_err_as_often_as_they_say():
    rng = np.random.default_rng(2)
    full, method = np.mean(rng.random((2, 3, 1000, 60)) < 0.6, axis=1)
    found = np.array([paired_test(*pair, resamples=999) for pair in zip(method, full, strict=True)])
    for level in (0.05, 0.2):
        assert np.mean(found <= level) == pytest.approx(level, abs=noise(level, len(found)))


@pytest.mark.parametrize(("n", "lost", "won"), [(60, 0.3, 0.05), (200, 0.12, 0.03), (500, 0.06, 0)])
def test_a_true_loss_is_found(n, lost, won):
    rng = np.random.default_rng(3)
    drawn = rng.multinomial(n, [lost, won, 1 - lost - won], size=SETS)[:, :2]
    power = np.mean([p_of(i, j, n) < 0.05 for i, j in drawn.tolist()])
    said = np.mean([interval_of(i, j, n).high < 0 for i, j in drawn[:100].tolist()])
    assert power > 0.8
    assert said > 0.8


@pytest.fixture
def few_objects():
    """statsmodels collects garbage in every correction: let it not walk through all modules."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
def test_holm_keeps_families_from_erring():
    """Ten methods that differ from the same `full` by chance alone."""
    rng = np.random.default_rng(4)
    plain, corrected = [], []
    for _ in range(SETS):
        full = (rng.random(200) < 0.6) * 1.0
        methods = (rng.random((10, 200)) < 0.6) * 1.0
        found = [paired_test(method, full) for method in methods]
        plain.append(min(found) < 0.05)
        corrected.append(min(holm(found)) < 0.05)
    assert np.mean(corrected) <= 0.05 + noise(0.05, SETS)
    assert np.mean(plain) > 0.15  # so the correction has something to correct


@pytest.mark.usefixtures("few_objects")
def test_holm_still_finds_a_true_loss():
    rng = np.random.default_rng(5)
    found = [[1.0] * 9 + [p_of(int(lost), 2, 200)] for lost in rng.binomial(200, 0.15, SETS)]
    assert np.mean([holm(family)[-1] < 0.05 for family in found]) > 0.95


def test_wordings_err_as_often_as_they_say_and_a_true_gap_is_found():
    rng = np.random.default_rng(6)
    wordings = np.arange(80) % 2
    same = -1.0 * (rng.random((200, 80)) < 0.3)
    found = np.array([wording_gap(differences, wordings) for differences in same])
    for level in (0.05, 0.2):
        assert np.mean(found <= level) <= level + noise(level, len(found))
    apart = -1.0 * (rng.random((50, 80)) < np.where(wordings, 0.1, 0.5))
    assert np.mean([wording_gap(differences, wordings) < 0.05 for differences in apart]) > 0.9
