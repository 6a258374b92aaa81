"""Methods whose output is a smaller grid."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import mean_tokens
from vlmcompress.methods.expedit import Expedit
from vlmcompress.methods.m3 import M3
from vlmcompress.methods.pllava import PLLaVA
from vlmcompress.methods.pool import Pool
from vlmcompress.methods.ppllava import PPLLaVA
from vlmcompress.methods.shared.grid_shapes import coarser, coarser_of, near_square
from vlmcompress.ops.pool import window
from vlmcompress.tokens import Grid, VisualTokens

METHODS = [Pool(), Expedit(), M3(), PLLaVA(), PPLLaVA()]
PER_FRAME = {"pool", "expedit", "m3"}
GRIDS = [
    *(Grid(1, 1, 1), Grid(1, 4, 4), Grid(1, 3, 5), Grid(1, 1, 7), Grid(4, 3, 3), Grid(5, 1, 2)),
    *(Grid(1, 12, 12), Grid(1, 5, 14), Grid(1, 23, 2), Grid(9, 4, 4), Grid(1, 2, 31)),
]
on_methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
on_grids = pytest.mark.parametrize("grid", GRIDS, ids=str)


def image(grid, seed=0, **changes):
    g = torch.Generator().manual_seed(seed)
    given = {"features": torch.randn(len(grid), 8, generator=g), "grid": grid}
    given["relevance"] = torch.rand(len(grid), generator=g)
    return VisualTokens(**{**given, **changes})


@on_grids
@on_methods
def test_counts_rise_with_the_budget_and_can_be_made(method, grid):
    counts = []
    for budget in range(1, len(grid) + 1):
        try:
            counts.append(method.keep_count(grid, budget))
        except BudgetError:
            assert method.name in PER_FRAME
            assert budget < grid.t
            continue
        assert 0 < counts[-1] <= budget
        # A count is made as announced.
        assert method.keep_count(grid, counts[-1]) == counts[-1]
        assert method.keep_count(grid, budget + 0.4) == counts[-1]
    assert counts == sorted(counts)
    assert counts[-1] == method.keep_count(grid, len(grid) + 7) == len(grid)


@on_grids
@on_methods
def test_reducing_makes_the_count_in_raster_order(method, grid):
    tokens = image(grid)
    before = tokens.features.clone()
    counts = {
        method.keep_count(grid, budget) for budget in range(grid.t, len(grid) + 1, 1 + grid.t // 3)
    }
    for count in counts:
        made = method.reduce(tokens, count)
        assert made.features.shape == (count, 8)
        assert made.features.isfinite().all()
        groups = made.groups()
        assert all(group and group == sorted(set(group)) for group in groups)
        firsts = [group[0] for group in groups]
        assert firsts == sorted(set(firsts))
    assert torch.equal(method.reduce(tokens, len(grid) + 3).features, before)
    assert torch.equal(tokens.features, before)


@on_methods
def test_all_of_the_tokens_change_nothing(method):
    tokens = image(Grid(2, 3, 3), features=torch.randn(18, 8).bfloat16())
    made = method.reduce(tokens, 18)
    assert torch.equal(made.features, tokens.features)
    assert made.groups() == [[i] for i in range(18)]
    less = method.reduce(tokens, 2)
    assert less.features.dtype == torch.bfloat16


@on_methods
def test_half_precision_gives_the_groups_of_its_float32_cast(method):
    tokens = image(Grid(1, 6, 6), features=torch.randn(36, 8).half())
    half, whole = (
        method.reduce(replace(tokens, features=x), method.keep_count(tokens.grid, 9))
        for x in (tokens.features, tokens.features.float())
    )
    assert half.groups() == whole.groups()
    torch.testing.assert_close(half.features, whole.features.half())


@on_methods
def test_features_that_are_not_finite_are_one_clear_error(method):
    tokens = image(Grid(1, 4, 4))
    tokens.features[3, 1] = float("nan")
    for count in (method.keep_count(tokens.grid, 5), 16):
        with pytest.raises(VLMCompressError, match="finite: 1 of 16 rows"):
            method.reduce(tokens, count)


@on_methods
def test_poolers_need_the_grid(method):
    assert method.on_grid
    assert method.needs == ({"relevance|text"} if method.name == "ppllava" else set())


@pytest.mark.parametrize("method", [Pool(), Expedit(), M3()], ids=lambda method: method.name)
def test_without_a_default_a_budget_is_needed(method):
    with pytest.raises(BudgetError, match=f"{method.name} needs a budget"):
        method.keep_count(Grid(1, 4, 4), None)


@on_methods
def test_no_token_is_not_possible(method):
    for budget in (0, 0.3):
        with pytest.raises(BudgetError, match="at least one token"):
            method.keep_count(Grid(1, 4, 4), budget)
    with pytest.raises(BudgetError, match="at least one token"):
        method.reduce(image(Grid(1, 4, 4)), 0)


@on_methods
def test_counts_that_cannot_be_made_are_refused(method):
    impossible = {"pllava": 5}.get(method.name, 7)
    with pytest.raises(VLMCompressError, match=f"{method.name} cannot make {impossible} tokens"):
        method.reduce(image(Grid(1, 12, 12)), impossible)


def test_the_most_windows_among_the_sides_that_fit():
    for h, w in product(range(1, 8), range(1, 8)):
        for most in range(1, h * w + 1):
            a, b = near_square(Grid(1, h, w), most, lambda size, parts: size % parts == 0)
            assert h % a == w % b == 0
            assert a * b <= most
            for c, d in product(range(1, h + 1), range(1, w + 1)):
                near = max(h * d, w * c) <= 2 * min(h * d, w * c)
                if h % c == w % d == 0 and c * d <= most and near:
                    assert a * b >= c * d


# M3


def test_the_hand_example_of_m3():
    made = M3().reduce(VisualTokens(torch.arange(16.0)[:, None], Grid(1, 4, 4)), 4)
    assert made.features[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert made.groups() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(
    ("grid", "budget", "count"),
    [
        (Grid(1, 24, 24), 576, 576),
        (Grid(1, 24, 24), 575, 144),
        (Grid(1, 24, 24), 144, 144),
        # The official code makes 144 of this.
        (Grid(1, 24, 24), 100, 64),
        (Grid(1, 24, 24), 36, 36),
        (Grid(1, 24, 24), 9, 9),
        (Grid(1, 24, 24), 8, 4),
        (Grid(1, 24, 24), 1, 1),
        (Grid(5, 24, 24), 720, 720),
        (Grid(5, 24, 24), 719, 320),
        (Grid(1, 5, 5), 4, 4),
        (Grid(1, 12, 24), 72, 72),
        (Grid(1, 1, 7), 3, 3),
        (Grid(1, 1, 7), 1, 1),
    ],
)
def test_counts_of_m3(grid, budget, count):
    assert M3().keep_count(grid, budget) == count
    if budget == count:
        assert M3(strict=True).keep_count(grid, budget) == count
    else:
        with pytest.raises(BudgetError, match=f"got a budget of {budget}") as error:
            M3(strict=True).keep_count(grid, budget)
        assert str(count) in str(error.value)


def test_m3_says_which_grids_there_are():
    words = "m3 can make 1, 4, 9, 16, 36, 64, 144, 576 tokens of a grid of 24x24"
    with pytest.raises(BudgetError, match=words):
        M3(strict=True).keep_count(Grid(1, 24, 24), 100)


@pytest.mark.parametrize(("side", "count", "k"), [(24, 16, 6), (24, 9, 8), (24, 4, 12), (5, 4, 2)])
def test_m3_drops_as_little_as_possible(side, count, k):
    tokens = image(Grid(1, side, side))
    made = M3().reduce(tokens, count)
    parts = side // k
    grid = torch.arange(side * side).reshape(side, side)[: parts * k, : parts * k]
    blocks = grid.reshape(parts, k, parts, k).transpose(1, 2).reshape(-1, k * k)
    assert made.groups() == blocks.tolist()
    torch.testing.assert_close(made.features, tokens.features[blocks].mean(1))


# PLLaVA


def test_the_hand_example_of_pllava():
    tokens = VisualTokens(torch.arange(27.0)[:, None], Grid(3, 3, 3))
    made = PLLaVA(shape=(2, 2, 2)).reduce(tokens, 8)
    assert made.features[:, 0].tolist() == [6.5, 7.5, 9.5, 10.5, 15.5, 16.5, 18.5, 19.5]


@pytest.mark.parametrize(
    ("grid", "budget", "shape"),
    [
        (Grid(16, 24, 24), None, (16, 12, 12)),
        (Grid(64, 24, 24), None, (16, 12, 12)),
        (Grid(4, 8, 24), None, (4, 8, 12)),
        (Grid(1, 24, 24), None, (1, 12, 12)),
        (Grid(4, 24, 24), 256, (4, 8, 8)),
        (Grid(4, 24, 24), 323, (4, 8, 8)),
        (Grid(4, 24, 24), 324, (4, 9, 9)),
        (Grid(4, 24, 24), 3, (3, 1, 1)),
        # min(s, H) * min(s, W): 4 * 7.
        (Grid(1, 4, 9), 30, (1, 4, 7)),
        (Grid(1, 4, 9), 36, (1, 4, 9)),
        # The default, which is larger than what 32 frames of s x s make of it: 32 * 8 * 8.
        (Grid(32, 24, 24), 2304, (16, 12, 12)),
        (Grid(32, 24, 24), 2303, (32, 8, 8)),
        (Grid(32, 24, 24), 2592, (32, 9, 9)),
    ],
)
def test_shapes_of_pllava(grid, budget, shape):
    assert PLLaVA().output(grid, budget) == Grid(*shape)
    if len(grid) < 600:
        tokens = image(grid)
        made = PLLaVA().reduce(tokens, Grid(*shape).__len__())
        assert torch.equal(made.features, window(tokens.features, grid, shape).features)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Expedit(temperature=0.0), "temperature must be above 0 and at most 1e"),
        (lambda: Expedit(iterations=-1), "iterations must be 0 or more, got -1"),
        (lambda: Expedit(window=0), "window must be at least 1, got 0"),
        (lambda: PLLaVA(shape=(1, 2)), "shape must be three numbers of at least 1"),
        (lambda: PLLaVA(shape=(0, 12, 12)), "shape must be three numbers of at least 1"),
        (lambda: PPLLaVA(kernel=(2, 3)), "kernel must be three numbers of at least 1"),
        (lambda: PPLLaVA(theta=0.0), "theta must be above 0, got 0.0"),
        (lambda: PPLLaVA(repair="both"), "repair must be one of"),
        (lambda: M3(strict=1), "strict must be True or False, got 1"),
    ],
)
def test_options_out_of_range_are_one_clear_line(make, words):
    with pytest.raises(VLMCompressError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_similar_tokens_weigh_more():
    """One window of three: two tokens alike and one across; the mean points along (2, 1)."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    tokens = VisualTokens(features, Grid(1, 1, 3))
    found = Pool(weights="similar", temperature=0.5).reduce(tokens, 1)
    near, far = math.exp(2 / 5**0.5 / 0.5), math.exp(1 / 5**0.5 / 0.5)
    weights = torch.tensor([near, near, far]) / (2 * near + far)
    assert torch.allclose(found.features[0], weights @ features)
    plain = Pool().reduce(tokens, 1)
    assert torch.allclose(plain.features[0], torch.tensor([2 / 3, 1 / 3]))
    assert found.groups() == plain.groups() == [[0, 1, 2]]
    even = Pool(weights="similar", temperature=1e6).reduce(tokens, 1)
    assert torch.allclose(even.features, plain.features, atol=1e-5)


@on_grids
def test_similar_weights_by_definition(grid):
    tokens = image(grid, seed=2)
    count = Pool().keep_count(grid, max(grid.t, len(grid) // 2))
    found = Pool(weights="similar").reduce(tokens, count)
    plain = Pool().reduce(tokens, count)
    assert found.groups() == plain.groups()
    for feature, group in zip(found.features, found.groups(), strict=True):
        rows = tokens.features[group]
        alike = torch.cosine_similarity(rows, rows.mean(0), dim=-1)
        assert torch.allclose(feature, (alike / 0.1).softmax(0) @ rows, atol=1e-5)
    if count < len(grid):
        assert not torch.allclose(found.features, plain.features, atol=1e-3)


def test_a_window_without_a_direction_keeps_the_plain_mean():
    tokens = VisualTokens(torch.tensor([[1.0, 0], [-1, 0]]), Grid(1, 1, 2))
    assert not Pool(weights="similar").reduce(tokens, 1).features.any()


@pytest.mark.parametrize(
    ("grids", "factor", "expected"),
    [
        ((Grid(1, 24, 24),), 2, (Grid(1, 12, 12),)),
        ((Grid(1, 5, 7),), 2, (Grid(1, 3, 4),)),
        ((Grid(3, 4, 6),), 4, (Grid(3, 1, 2),)),
        ((Grid(1, 4, 4), Grid(1, 6, 4)), 1.5, (Grid(1, 3, 3), Grid(1, 4, 3))),
        ((Grid(1, 5, 7),), 1000, (Grid(1, 1, 1),)),
        ((Grid(1, 15, 17),), 15 / 13, (Grid(1, 13, 15),)),  # 15 / (15 / 13) is above 13
    ],
)
def test_coarser_grids(grids, factor, expected):
    assert coarser(grids, factor) == expected
    assert coarser_of(grids, sum(map(len, expected))) == expected


@pytest.mark.parametrize(
    "grids", [(Grid(1, 6, 6),), (Grid(1, 4, 4), Grid(1, 6, 4)), (Grid(2, 5, 3),)]
)
def test_coarser_grids_are_found_again_and_nest(grids):
    sizes, before = set(), grids
    for step in range(100, 800, 7):
        found = coarser(grids, step / 100)
        assert coarser_of(grids, sum(map(len, found))) == found
        assert all(b.h <= a.h and b.w <= a.w for a, b in zip(before, found, strict=True))
        sizes.add(sum(map(len, found)))
        before = found
    assert len(sizes) > 3
    assert coarser_of(grids, sum(map(len, grids)) - 1) is None


def test_schedules_between_decoder_layers():
    pool = Pool(stage="decoder")
    grid = Grid(1, 24, 24)
    assert pool.schedule_on([grid], 32, 576, None) == {8: 144, 16: 36, 24: 9}
    assert Pool(stage="decoder", layers=(16,)).schedule_on([grid], 32, 576, None) == {16: 144}
    assert pool.schedule_on([grid], 32, 576, 576) == {}
    for budget in (200, 300, 400, 500):
        schedule = pool.schedule_on([grid], 32, 576, budget)
        found = mean_tokens(32, 576, schedule)
        assert 0.9 * budget < found <= budget
    with pytest.raises(
        BudgetError, match=r"fewer than 144\.75 of 576 visual tokens .*\(1, 16, 24\)"
    ):
        pool.schedule_on([grid], 32, 576, 144)
    with pytest.raises(BudgetError, match=r"got 1: give so many, or pool at stage='projector'"):
        Pool(stage="decoder", layers=(1, 2)).schedule_on([grid], 32, 576, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": (1,)}, "give stage='decoder'"),
        ({"layers": (), "stage": "decoder"}, "must be ascending and 1 or more"),
        ({"layers": (3, 2), "stage": "decoder"}, "must be ascending and 1 or more"),
        ({"temperature": 0}, "temperature must be 1e-06 or more"),
        ({"weights": "some"}, "weights must be one of"),
    ],
)
def test_options_of_pool_are_checked(options, words):
    with pytest.raises(VLMCompressError, match=words):
        Pool(**options)
