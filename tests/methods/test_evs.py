"""EVS against its definition in Python floats."""

import math
from itertools import pairwise

import pytest
import torch
from plain import CLIPS, clip, cosine, ranked

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.evs import EVS
from vlmcompress.methods.stride import Stride
from vlmcompress.tokens import Grid, VisualTokens


def evs(shown, count):
    rows, frame = shown.features.tolist(), shown.grid.h * shown.grid.w
    new = [3.0] * frame
    new += [1 - cosine(rows[i], rows[i - frame]) for i in range(frame, len(rows))]
    return sorted(ranked(range(len(rows)), new)[:count])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grid", [g for g in CLIPS if g.t > 1], ids=str)
def test_keeps_the_first_frame_and_what_changed_most(grid, seed):
    shown = clip(grid, seed)
    for count in range(grid.h * grid.w, len(grid) + 1):
        assert EVS().select(shown, count).tolist() == evs(shown, count)


def test_hand_example():
    """Three frames of two places. The left one turns by 90 degrees and back by 60, the right one
    stands still, then turns by 30: changes 1, 0 | .5, .134."""
    angles = torch.tensor([0.0, 0, 90, 0, 30, 30]).deg2rad()
    lengths = torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None]
    features = torch.stack([angles.cos(), angles.sin()], dim=-1) * lengths
    shown = VisualTokens(features, Grid(3, 1, 2))
    orders = [EVS().select(shown, count).tolist() for count in range(2, 7)]
    added = [(set(b) - set(a)).pop() for a, b in pairwise(orders)]
    assert orders[0] == [0, 1]
    assert added == [2, 4, 5, 3]


def test_a_still_picture_changes_by_exactly_nothing():
    frame = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    shown = VisualTokens(frame.repeat(4, 1), Grid(4, 2, 3))
    assert EVS().select(shown, 15).tolist() == list(range(15))


def test_a_token_of_zeros_is_unlike_any_other():
    features = torch.tensor([[1.0, 1], [1, 0], [0, 0], [1, 0.1], [0, 0], [1, 1]])
    shown = VisualTokens(features, Grid(3, 1, 2))
    # Changes: 1 and .005, then 1 (zeros after zeros have no cosine either) and .23.
    assert EVS().select(shown, 3).tolist() == [0, 1, 2]
    assert EVS().select(shown, 4).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("grid", [Grid(1, 4, 6), Grid(5, 4, 6)], ids=str)
def test_spreads_a_budget_below_one_frame_over_the_first(grid):
    image = clip(Grid(1, 4, 6))
    for count in range(25):
        kept = EVS().select(clip(grid), count)
        assert torch.equal(kept, Stride().select(image, count))


def test_counts():
    # 64 frames of 14x14: a quarter; vLLM never goes below one frame.
    assert EVS().keep_count(Grid(64, 14, 14), None) == 3136
    assert EVS(ratio=0.001).keep_count(Grid(64, 14, 14), None) == 196
    assert EVS(ratio=0.3).keep_count(Grid(3, 1, 7), None) == 7
    assert EVS().keep_count(Grid(1, 5, 5), None) == 25
    assert EVS().keep_count(Grid(64, 14, 14), 100) == 100


@pytest.mark.parametrize("ratio", [0, 1.1, math.nan])
def test_the_ratio_is_checked(ratio):
    with pytest.raises(VLMCompressError, match="evs: ratio must be above 0 and at most 1, got"):
        EVS(ratio=ratio)
