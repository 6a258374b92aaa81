"""NDCG and recall by hand and against loops."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from vlmcompress.eval.metrics.ranking import chance_ndcg, ndcg, recall


def test_by_hand():
    ranked = np.array([[True, False, True], [False, False, False], [True, True, True]])
    totals = np.array([2, 1, 4])
    third = (1 + 0.5) / (1 + 1 / math.log2(3))
    assert ndcg(ranked, totals, 3).tolist() == pytest.approx([third, 0, 1])
    assert recall(ranked, totals, 3).tolist() == [1, 0, 0.75]
    assert recall(ranked, totals, 1).tolist() == [0.5, 0, 0.25]
    assert ndcg(ranked, totals, 1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_against_a_loop(k):
    rng = np.random.default_rng(0)
    ranked = rng.random((40, 7)) < 0.3
    totals = ranked.sum(1) + rng.integers(0, 3, 40) + (ranked.sum(1) == 0)
    for row, total, gain, share in zip(
        ranked, totals, ndcg(ranked, totals, k), recall(ranked, totals, k), strict=True
    ):
        got = sum(1 / math.log2(place + 2) for place, hit in enumerate(row[:k]) if hit)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, total)))
        assert gain == pytest.approx(got / best)
        assert share == sum(row[:k]) / total


def test_chance_is_the_mean_over_all_orders():
    totals = np.array([1, 2])
    means = []
    for total in totals:
        orders = set(permutations([True] * total + [False] * (4 - total)))
        ranked = np.array(sorted(orders))
        means.append(ndcg(ranked, np.full(len(ranked), total), 3).mean())
    assert chance_ndcg(totals, 4, 3) == pytest.approx(np.mean(means))
