"""ANLS, relaxed accuracy and IoU by hand, and against slow, independent ways to compute them."""

import functools
import itertools
from fractions import Fraction

import numpy as np
import pytest

from vlmcompress.eval.metrics.metrics import METRICS


def score(metric, answer, *targets, **options):
    return METRICS.get(metric)(**options).score(answer, targets)


@pytest.mark.parametrize(
    ("answer", "target", "points"),
    [
        ("Coca  Cola", "coca-cola", 1 - 1 / 9),
        ("kitten", "sitting", 1 - 3 / 7),
        ("abcd", "abxy", 0),
        ("abcde", "abcxy", 1 - 2 / 5),
        ("ITC", "itc ", 1),
        ("", "itc", 0),
    ],
)
def test_anls_by_hand(answer, target, points):
    assert score("anls", answer, target) == pytest.approx(points)


def test_anls_threshold_and_best_target():
    assert score("anls", "abcd", "abxy", threshold=0.6) == pytest.approx(0.5)
    assert score("anls", "abcd", "zzzz", "abce", "wwww") == pytest.approx(0.75)


@functools.cache
def distance(first, second):
    """Edit distance straight from its definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        distance(first[1:], second) + 1,
        distance(first, second[1:]) + 1,
        distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_anls_agrees_with_recursion():
    rng = np.random.default_rng(2)
    for _ in range(200):
        texts = ["".join(rng.choice(list("abc"), int(rng.integers(1, 9)))) for _ in range(4)]
        answer, *targets = texts
        shares = [Fraction(distance(answer, t), max(len(answer), len(t))) for t in targets]
        slow = max(1 - share if share < Fraction(1, 2) else Fraction(0) for share in shares)
        assert score("anls", answer, *targets) == pytest.approx(float(slow))


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("95", "100", True),
        ("105", "100", True),
        ("94.9", "100", False),
        ("105.1", "100", False),
        ("-96", "-100", True),
        ("96", "-100", False),
        ("5%", "0.05", True),
        ("5%", "5 %", True),
        ("5", "5%", False),
        ("0.0", "0", True),
        ("0.001", "0", False),
        ("1,000", "1000", True),
        ("1,200", "1200", True),
        ("-1,234,000.5", "-1234000", True),
        ("12,00", "1200", False),
        ("1200", "1,200", True),
        ("1,400", "1200", False),
        ("Yes.", "yes", True),
        ("No!", "No", True),
        ("Yes, it is.", "yes", False),
        ("No.", "yes", False),
        ("...", "yes", False),
        ("95.", "100", True),
        ("1,000", "1,000", True),
        ("nan", "NaN", True),
        ("nan", "3", False),
        ("inf", "1", False),
        ("Blue ", "blue", True),
        ("blue", "light blue", False),
        ("four", "4", False),
        ("", "4", False),
    ],
)
def test_relaxed_by_hand(answer, target, right):
    assert score("relaxed", answer, target) == right
    assert score("relaxed", answer, "some text", target) == right


def test_relaxed_agrees_with_exact_fractions():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(500):
        target = int(rng.integers(-40, 41)) * 20
        answer = target + int(rng.integers(-60, 61))
        inside = abs(Fraction(answer - target)) <= Fraction(5, 100) * abs(target)
        hits += inside
        assert score("relaxed", str(answer), str(target)) == inside
    assert 50 < hits < 450


def test_relaxed_tolerance():
    assert score("relaxed", "109", "100", tolerance=0.1) == 1
    assert score("relaxed", "111", "100", tolerance=0.1) == 0


@pytest.mark.parametrize(
    ("answer", "overlap"),
    [
        ("[0, 0, 2, 2]", 1 / 3),
        ("(0,0),(2,2)", 1 / 3),
        ('{"bbox_2d": [1, 0, 3, 2]}', 1),
        ("at 1.0,0.0,3.0,1.5 .", 3 / 4),
        ("[3, 0, 5, 2]", 0),
        ("[5, 5, 9, 9]", 0),
        ("[-1, 0, 3, 2]", 1 / 2),
        ("[3, 2, 1, 0]", 0),
        ("[1, 0, 1, 2]", 0),
        ("[1, 0, 3]", 0),
        ("left", 0),
    ],
)
def test_iou_by_hand(answer, overlap):
    target = "[1, 0, 3, 2]"
    assert score("iou", answer, target, threshold=None) == pytest.approx(overlap)
    assert score("iou", answer, target) == (overlap >= 0.5)
    assert score("iou", answer, target, threshold=0.3) == (overlap >= 0.3)


def test_iou_agrees_with_counting_cells():
    rng = np.random.default_rng(4)

    def box():
        (left, right), (top, bottom) = (sorted(rng.choice(12, 2, replace=False)) for _ in "xy")
        cells = set(itertools.product(range(left, right), range(top, bottom)))
        return f"[{left}, {top}, {right}, {bottom}]", cells

    for _ in range(200):
        answer, given = box()
        targets, wanted = zip(*(box() for _ in range(2)), strict=True)
        slow = max(len(given & cells) / len(given | cells) for cells in wanted)
        assert score("iou", answer, *targets, threshold=None) == pytest.approx(slow)
