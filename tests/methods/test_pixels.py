"""Methods on pixels: a smaller picture, and blocks that repeat their neighbours."""

import math

import pytest
import torch

from vlmcompress.errors import BudgetError, CompositionError, VLMCompressError
from vlmcompress.methods.contracts.before_projector import PixelTokens
from vlmcompress.methods.downsample import Downsample
from vlmcompress.methods.pixelprune import PixelPrune
from vlmcompress.methods.pool import Pool
from vlmcompress.tokens import Grid, VisualTokens

ALL, QWEN = ("encoder", "projector", "decoder"), ("pixels", "projector", "decoder")


def blocks(values, grid):
    return PixelTokens(torch.tensor(values, dtype=torch.float32).view(len(grid), -1), grid)


def kept(values, grid, tolerance=0.0):
    tokens = blocks(values, grid)
    return PixelPrune(tolerance).select(tokens, len(grid), False).tolist()


def test_a_plain_picture_is_one_block():
    assert kept([7] * 12, Grid(1, 3, 4)) == [0]


def test_a_rectangle_leaves_its_corners():
    # 0 0 0 0    The first row has one anchor. In the second the rectangle begins and ends; in the
    # 0 5 5 0    third B is the prediction at its left side (C like A, not B), A elsewhere, and in
    # 0 5 5 0    the last only the block under its left side is no longer what B shows.
    # 0 0 0 0
    picture = [0, 0, 0, 0, 0, 5, 5, 0, 0, 5, 5, 0, 0, 0, 0, 0]
    assert kept(picture, Grid(1, 4, 4)) == [0, 5, 7, 13]


def test_a_column_edge_is_predicted_from_above_and_a_row_edge_from_the_left():
    assert kept([0, 5, 0, 5, 0, 5], Grid(1, 3, 2)) == [0, 1]
    assert kept([0, 0, 0, 5, 5, 5], Grid(1, 2, 3)) == [0, 3]


def test_a_still_clip_is_its_first_frame():
    frame = [1, 2, 3, 4, 5, 6]
    assert kept(frame * 3, Grid(3, 2, 3)) == [0, 1, 2, 3, 4, 5]
    moved = [1, 2, 3, 4, 9, 6]
    assert kept(frame + moved + moved, Grid(3, 2, 3)) == [0, 1, 2, 3, 4, 5, 10]


def test_small_steps_do_not_add_up():
    assert kept([0, 1, 2, 3, 4, 5], Grid(1, 1, 6), tolerance=1) == [0, 2, 4]
    assert kept([0, 1, 2, 3, 4, 5], Grid(1, 1, 6), tolerance=2) == [0, 3]


def test_one_value_of_a_block_is_enough_to_keep_it():
    assert kept([[0, 0, 0], [0, 0, 3], [0, 0, 3]], Grid(1, 1, 3), tolerance=1) == [0, 1]


def test_a_budget_keeps_what_is_predicted_worst():
    tokens = blocks([0, 1, 1, 9, 7, 7], Grid(1, 1, 6))
    assert [PixelPrune().select(tokens, n, True).tolist() for n in (1, 2, 3, 4, 5, 6)] == [
        [0],
        [0, 3],
        [0, 3, 4],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
    ]


def by_hand(tokens, tolerance, replaces):
    """Differences, block after block."""
    grid = tokens.grid
    known = {}
    found = []
    for number, block in enumerate(tokens.pixels):
        t, rest = divmod(number, grid.h * grid.w)
        r, c = divmod(rest, grid.w)

        def apart(one, other):
            return max(abs(x - y) for x, y in zip(one.tolist(), other.tolist(), strict=True))

        guesses = []
        if r and c:
            a, b, corner = known[t, r, c - 1], known[t, r - 1, c], known[t, r - 1, c - 1]
            from_above = apart(corner, a) <= tolerance < apart(corner, b)
            guesses = [b if from_above else a]
        elif r or c:
            guesses = [known[t, r, c - 1] if c else known[t, r - 1, c]]
        if t:
            guesses.append(known[t - 1, r, c])
        best = min(guesses, key=lambda guess: apart(block, guess), default=None)
        found.append(math.inf if best is None else apart(block, best))
        known[t, r, c] = best if replaces and found[-1] <= tolerance else block
    return found


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("tolerance", [0.0, 1.0])
@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(1, 3, 3), Grid(1, 2, 5), Grid(2, 2, 2)])
def test_differences_equal_a_plain_loop(grid, tolerance, replaces):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        pixels = torch.randint(3, (len(grid), 2), generator=g).float()
        tokens = PixelTokens(pixels, grid)
        expected = by_hand(tokens, tolerance, replaces)
        assert PixelPrune(tolerance).differences(tokens, replaces).tolist() == expected
        chosen = PixelPrune(tolerance).select(tokens, len(grid), False).tolist()
        if replaces:
            assert chosen == [n for n, apart in enumerate(expected) if apart > tolerance]


def test_counts_of_pixelprune_are_bounds_without_a_budget():
    assert PixelPrune().keep_count(Grid(1, 4, 4), None) == 16
    assert PixelPrune().keep_count(Grid(1, 4, 4), 5.4) == 5
    assert PixelPrune.adaptive


@pytest.mark.parametrize("tolerance", [-1.0, math.inf, math.nan])
def test_an_impossible_tolerance_is_refused(tolerance):
    with pytest.raises(VLMCompressError, match="tolerance must be"):
        PixelPrune(tolerance)


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(VLMCompressError, match="pixels must be finite"):
        kept([0, math.nan], Grid(1, 1, 2))


def test_downsample_acts_on_pixels_where_it_can():
    method = Downsample()
    assert method.settled("qwen", QWEN) is method
    assert method.acts_at == "pixels"
    moved = method.settled("llava", ALL)
    assert (moved.stage, moved.acts_at) == ("projector", "projector")
    assert Downsample(stage="projector").settled("qwen", QWEN).acts_at == "projector"
    with pytest.raises(CompositionError, match="acts at the pixels stage"):
        Downsample(stage="pixels").settled("llava", ALL)


@pytest.mark.parametrize("grid", [Grid(1, 12, 12), Grid(1, 7, 13), Grid(3, 6, 5), Grid(1, 1, 9)])
def test_shapes_of_downsample_are_those_of_pool_and_stable(grid):
    for budget in range(grid.t, len(grid) + 1):
        shape = Downsample().shape(grid, budget)
        assert len(shape) == Downsample().keep_count(grid, budget)
        assert len(shape) == Pool().keep_count(grid, budget) <= budget
        assert (shape.t, shape.h <= grid.h, shape.w <= grid.w) == (grid.t, True, True)
        assert Downsample().shape(grid, len(shape)) == shape


def test_downsample_at_the_projector_is_pool():
    grid = Grid(2, 4, 6)
    shown = VisualTokens(torch.randn(48, 5, generator=torch.Generator().manual_seed(0)), grid)
    mine, pooled = (m.reduce(shown, 12) for m in (Downsample(stage="projector"), Pool()))
    assert torch.equal(mine.features, pooled.features)
    assert mine.groups() == pooled.groups()


def test_downsample_needs_a_budget_that_can_be_met():
    with pytest.raises(BudgetError, match="downsample needs a budget"):
        Downsample().keep_count(Grid(1, 4, 4), None)
    with pytest.raises(BudgetError, match="at least one token per frame"):
        Downsample().shape(Grid(4, 4, 4), 3)


def test_pixels_stay_as_they_were():
    tokens = blocks([0, 0.1, 0.2, 0.3], Grid(1, 2, 2))
    before = tokens.pixels.clone()
    assert len(PixelPrune(0.15).select(tokens, 4, False)) < 4
    assert torch.equal(tokens.pixels, before)
