"""Methods at the projector stage."""

import pytest
import torch

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods import get_method
from vlmcompress.methods.baselines import Full, TextOnly
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.methods.pool import Pool
from vlmcompress.methods.random import Random
from vlmcompress.methods.stride import Stride
from vlmcompress.ops.select import farthest_point
from vlmcompress.tokens import Grid, VisualTokens

GRIDS = [Grid(1, 12, 12), Grid(1, 5, 7), Grid(4, 3, 5), Grid(1, 1, 9), Grid(7, 1, 1), Grid(1, 2, 9)]
SELECTORS = [Full(), TextOnly(), Random(), Stride(), DivPrune()]


def image(grid, seed=0, index=0, dtype=torch.float32):
    features = torch.randn(len(grid), 16, generator=torch.Generator().manual_seed(seed))
    return VisualTokens(features.to(dtype), grid, index=index)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("method", SELECTORS, ids=lambda m: m.name)
def test_exactly_count_indices_ascending_and_unique(method, grid):
    for budget in range(len(grid) + 1):
        count = method.keep_count(grid, budget)
        kept = method.select(image(grid), count)
        assert kept.dtype == torch.int64
        assert len(kept) == count
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert all(0 <= i < len(grid) for i in kept.tolist())
        if method.takes_budget:
            assert count == budget
    assert torch.equal(kept, torch.arange(count))


@pytest.mark.parametrize(("budget", "count"), [(2.4, 2), (2.6, 3), (0.2, 0), (99, 35), (-3, 0)])
def test_budgets_are_rounded_and_clamped(budget, count):
    assert Stride().keep_count(Grid(1, 5, 7), budget) == count


@pytest.mark.parametrize("method", [Random(), Stride(), Pool()], ids=lambda m: m.name)
def test_methods_without_a_default_ask_for_a_budget(method):
    with pytest.raises(BudgetError, match=f"{method.name} needs a budget"):
        method.keep_count(Grid(1, 4, 4), None)


def test_full_keeps_all_and_text_only_nothing():
    tokens = image(Grid(1, 3, 3))
    assert Full().keep_count(tokens.grid, None) == 9
    assert Full().select(tokens, 9).tolist() == list(range(9))
    assert TextOnly().keep_count(tokens.grid, None) == 0
    assert TextOnly().select(tokens, 0).tolist() == []


def test_random_depends_on_seed_and_image_and_on_nothing_else():
    grid = Grid(1, 12, 12)
    kept = Random().select(image(grid), 36)
    state = torch.get_rng_state()
    again = Random(seed=0).select(image(grid, seed=5, dtype=torch.bfloat16), 36)
    assert torch.equal(kept, again)
    assert torch.equal(torch.get_rng_state(), state)
    others = [Random(seed=s).select(image(grid, index=i), 36) for s in range(3) for i in range(3)]
    others.append(Random(seed=2**32 + 7).select(image(grid), 36))
    assert len({tuple(other.tolist()) for other in others}) == 10


def test_random_is_uniform():
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[Random(seed=seed).select(image(Grid(1, 4, 5)), 5)] += 1
    # 500 expected, standard deviation 19.
    assert counts.sum() == 10_000
    assert (counts - 500).abs().max() < 80


@pytest.mark.parametrize(
    ("grid", "count", "kept"),
    [
        (Grid(1, 4, 4), 4, [5, 7, 13, 15]),
        (Grid(1, 4, 4), 1, [10]),
        (Grid(1, 4, 4), 5, [5, 7, 12, 14, 15]),
        (Grid(1, 3, 3), 9, list(range(9))),
        (Grid(1, 2, 8), 4, [9, 11, 13, 15]),
        (Grid(3, 1, 2), 3, [1, 3, 5]),
        (Grid(4, 2, 2), 2, [7, 15]),
    ],
)
def test_stride_hand_examples(grid, count, kept):
    assert Stride().select(image(grid), count).tolist() == kept


def test_stride_is_the_strided_grid_where_there_is_one():
    # FEATHER's uniform grid of stride 3 on 27x27, offset 1.
    kept = Stride().select(image(Grid(1, 27, 27)), 81).tolist()
    assert kept == [r * 27 + c for r in range(1, 27, 3) for c in range(1, 27, 3)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_stride_leaves_no_frame_out_and_no_row_much_fuller(grid):
    for count in range(1, len(grid) + 1):
        kept = Stride().select(image(grid), count)
        frames = torch.bincount(kept // (grid.h * grid.w), minlength=grid.t)
        assert frames.max() - frames.min() <= 1
        rows = torch.bincount(kept // grid.w)
        rows = rows[rows > 0]
        if grid.t == 1:
            assert rows.max() - rows.min() <= 1


def test_divprune_counts():
    llava = Grid(1, 24, 24)
    assert DivPrune().keep_count(llava, None) == 56
    # The other ratios in use for LLaVA-1.5: 128, 64 and 32 of 576.
    for ratio, count in [(0.2222, 128), (0.1111, 64), (0.0556, 32)]:
        assert DivPrune(ratio=ratio).keep_count(llava, None) == count
    assert DivPrune().keep_count(llava, 64) == 64
    assert DivPrune().keep_count(Grid(1, 2, 2), None) == 1
    assert DivPrune(ratio=1).keep_count(llava, None) == 576


def test_divprune_keeps_the_hand_example():
    angles = torch.tensor([0.0, 10, 40, 100, 170, 205]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)
    tokens = VisualTokens(features, Grid(1, 2, 3))
    assert DivPrune().select(tokens, 3).tolist() == [0, 3, 5]
    assert DivPrune().select(tokens, 0).tolist() == []


def test_divprune_looks_at_the_features():
    grid = Grid(1, 12, 12)
    first, second = (DivPrune().select(image(grid, seed=seed), 36) for seed in (0, 1))
    assert torch.equal(first, farthest_point(image(grid).features, 36))
    assert not torch.equal(first, second)
    assert not torch.equal(first, Stride().select(image(grid), 36))


@pytest.mark.parametrize(
    ("grid", "budget", "shape"),
    [
        (Grid(1, 12, 12), 144, (12, 12)),
        (Grid(1, 12, 12), 72, (8, 9)),
        (Grid(1, 12, 12), 36, (6, 6)),
        (Grid(1, 12, 12), 35, (5, 7)),
        (Grid(1, 12, 12), 18, (3, 6)),
        (Grid(1, 12, 12), 9, (3, 3)),
        (Grid(1, 12, 12), 3, (1, 2)),
        (Grid(1, 12, 12), 1, (1, 1)),
        (Grid(1, 12, 12), 36.9, (6, 6)),
        (Grid(1, 12, 12), 999, (12, 12)),
        (Grid(1, 24, 24), 64, (8, 8)),
        (Grid(1, 24, 24), 192, (12, 16)),
        (Grid(1, 10, 20), 50, (5, 10)),
        (Grid(1, 4, 40), 3, (1, 3)),
        (Grid(1, 4, 40), 10, (1, 10)),
        (Grid(4, 8, 8), 64, (4, 4)),
        (Grid(4, 8, 8), 67, (4, 4)),
    ],
)
def test_pool_shapes(grid, budget, shape):
    count = Pool().keep_count(grid, budget)
    assert count == grid.t * shape[0] * shape[1]
    made = Pool().reduce(image(grid), count)
    rows, columns = (-(-side // parts) for side, parts in zip((grid.h, grid.w), shape, strict=True))
    # The first window shows which of two factorings was taken.
    assert made.groups()[0] == [r * grid.w + c for r in range(rows) for c in range(columns)]
    assert len(made.features) == len(made.offsets) - 1 == count


@pytest.mark.parametrize("grid", [*GRIDS, Grid(1, 9, 16), Grid(1, 2, 30)], ids=str)
def test_pool_stays_within_the_budget_and_is_sure_of_its_counts(grid):
    counts = [Pool().keep_count(grid, budget) for budget in range(grid.t, len(grid) + 1)]
    assert counts == sorted(counts)
    assert counts[-1] == len(grid)
    for budget, count in enumerate(counts, start=grid.t):
        assert 0 < count <= budget
        assert Pool().keep_count(grid, count) == count


def test_pool_refuses_what_it_cannot_make():
    with pytest.raises(BudgetError, match="smallest budget for a grid of 4x8x8 is 4, got 3"):
        Pool().keep_count(Grid(4, 8, 8), 3)
    with pytest.raises(VLMCompressError, match=r"cannot make 7 tokens .* smaller count is 6"):
        Pool().reduce(image(Grid(1, 12, 12)), 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random", {"seed": -1}, "seed must be 0 or more, got -1"),
        ("random", {"seed": 1.5}, "seed must be an integer, got 1.5"),
        ("divprune", {"ratio": 0}, "ratio must be above 0 and at most 1, got 0"),
        ("divprune", {"ratio": 1.1}, "ratio must be above 0 and at most 1, got 1.1"),
        ("divprune", {"ratio": float("nan")}, "ratio must be above 0"),
        ("divprune", {"ratio": "a"}, "ratio must be a number, got 'a'"),
        ("divprune", {"ratio": True}, "ratio must be a number, got True"),
    ],
)
def test_options_are_checked(name, options, message):
    method = type(get_method(name))
    for make in (lambda: method(**options), lambda: get_method(name, **options)):
        with pytest.raises(VLMCompressError, match=message):
            make()
