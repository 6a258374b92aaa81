"""The elbow of sorted scores."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.elbow import elbow


def brute(scores):
    """Perpendicular distances by the formula of a line through two points."""
    y = sorted(scores, reverse=True)
    n = len(y) - 1
    length = math.hypot(n, y[-1] - y[0]) or 1.0
    distances = [abs((y[-1] - y[0]) * x - n * (v - y[0])) / length for x, v in enumerate(y)]
    return y[distances.index(max(distances))], distances


def test_the_hand_example_of_corematching():
    value, distances = brute([10, 9, 8, 3, 2, 1])
    assert distances == pytest.approx([0, 0.389, 0.777, 0.777, 0.389, 0], abs=1e-3)
    assert elbow(torch.tensor([3, 10, 1, 8, 9, 2])) == value == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_against_perpendicular_distances(seed, dtype):
    g = torch.Generator().manual_seed(seed)
    scores = (torch.rand(9, generator=g).square() * 50).to(dtype)
    assert elbow(scores) == brute(scores.tolist())[0]


@pytest.mark.parametrize("scores", [[4], [4, 4, 4], [7, 2], [9, 6, 3, 0]])
def test_a_straight_line_has_none_and_nothing_lies_above(scores):
    assert elbow(torch.tensor(scores)) == max(scores)


def test_counts_too_large_for_float32_still_tie():
    scores = torch.tensor([10, 9, 8, 3, 2, 1]) * 10**7 + 1
    assert elbow(scores) == 8 * 10**7 + 1


@pytest.mark.parametrize(
    ("scores", "message"),
    [([], "at least one score"), ([1.0, math.nan], "finite"), ([1.0, math.inf], "finite")],
)
def test_bad_scores(scores, message):
    with pytest.raises(VLMCompressError, match=message):
        elbow(torch.tensor(scores))
