"""FEATHER: what its two cuts keep."""

import pytest
import torch
from shown import Layer

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.feather import Feather
from vlmcompress.tokens import Grid

SQUARE = Grid(1, 6, 6)


class Shown:
    """A layer whose scores are given."""

    def __init__(self, scores, parts=(SQUARE,), layer=8, depth=32, index=None):
        self.scores = torch.as_tensor(scores, dtype=torch.float)
        self.parts, self.layer, self.depth = parts, layer, depth
        self.index = torch.arange(len(self.scores)) if index is None else torch.tensor(index)
        self.visual = self.index + 2
        self.asked = []

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        self.asked.append((rows, keys, rope, of))
        return torch.stack([self.scores * 2, self.scores * 0])[:, None]


def high(*places, tokens=36):
    """Scores that rank the places given, in this order, above the others."""
    scores = torch.linspace(0.2, 0.1, tokens)
    for rank, place in enumerate(places):
        scores[place] = 1 - rank / 100
    return scores


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (Feather(), {8: 218 + 81, 16: 26}),
        (Feather(ratio=0.4), {8: 437 + 81, 16: 186}),
        (Feather(stride=2), {8: 218 + 196, 16: 37}),
    ],
    ids=str,
)
def test_counts_of_prismatic(method, counts):
    assert method.schedule(32, 729, None) == counts


@pytest.mark.parametrize(
    ("layers", "cuts"), [(32, [8, 16]), (28, [7, 14]), (6, [1, 3]), (3, [1, 2])]
)
def test_cuts_are_a_quarter_and_half_of_the_depth(layers, cuts):
    assert list(Feather().schedule(layers, 1000, None)) == cuts


def test_the_hand_example_of_the_union():
    method = Feather(ratio=0.9, fixed=False)
    view = Shown(high(0, 7, 8))
    assert method.keep(view, 36).tolist() == [0, 3, 7, 8, 18, 21]
    assert view.asked == [("last", "visual", False, "previous")]
    later = Shown(high(0, tokens=6), layer=16, index=[0, 3, 7, 8, 18, 21])
    assert method.keep(later, 6).tolist() == []
    assert method.schedule(32, 36, None) == {8: 36, 16: 0}


def test_the_fixed_number_holds_the_union_and_tops_up():
    method = Feather(ratio=0.9)
    assert method.schedule(32, 36, None) == {8: 7, 16: 0}
    assert method.keep(Shown(high(0, 7, 8, 30)), 7).tolist() == [0, 3, 7, 8, 18, 21, 30]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "parts", [(Grid(1, 5, 7),), (Grid(1, 3, 4), Grid(1, 5, 2)), (Grid(2, 3, 4),)]
)
def test_against_a_walk_over_the_grid(parts, seed):
    total = sum(map(len, parts))
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(total, generator=g)
    alive = sorted(torch.randperm(total, generator=g)[: total - 3].tolist())
    lattice, start = set(), 0
    for grid in parts:
        for t in range(grid.t):
            for row in range(0, grid.h, 2):
                for column in range(0, grid.w, 2):
                    lattice.add(start + (t * grid.h + row) * grid.w + column)
        start += len(grid)
    on = [place for place, raster in enumerate(alive) if raster in lattice]
    ranked = sorted(range(len(alive)), key=lambda place: -scores[place])
    view = Shown(scores[: len(alive)], parts=parts, index=alive)
    for count in range(len(alive)):
        best = [p for p in ranked if p in on] + [p for p in ranked if p not in on]
        assert Feather(stride=2).keep(view, count).tolist() == sorted(best[:count])
    union = set(on) | set(ranked[: int(len(alive) * 0.3 + 1e-9)])
    assert Feather(stride=2, fixed=False).keep(view, total).tolist() == sorted(union)
    later = Shown(scores[: len(alive)], parts=parts, index=alive, layer=16)
    assert Feather(stride=2).keep(later, 4).tolist() == sorted(ranked[:4])


@pytest.mark.parametrize("grid", [Grid(1, 16, 16), Grid(1, 5, 7), Grid(3, 4, 10)], ids=str)
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_the_fixed_number_has_room_for_the_whole_union(grid, stride):
    points = grid.t * len(range(0, grid.h, stride)) * len(range(0, grid.w, stride))
    pipeline = Pipeline.of([Feather(stride=stride)])
    best = int(len(grid) * 0.3 + 1e-9)
    assert pipeline.plan(grid, 32, None).schedule[8] == min(len(grid), points + best)
    # Behind another method, the points that are left in proportion.
    less = Feather(stride=stride).schedule_on([grid], 32, len(grid) // 2, None)
    assert less[8] == int(len(grid) // 2 * 0.3 + 1e-9) + -(-points * (len(grid) // 2) // len(grid))


def test_equal_scores_keep_the_first():
    flat = Shown(torch.ones(36))
    assert Feather().keep(flat, 6).tolist() == [0, 1, 2, 3, 18, 21]
    assert Feather().keep(flat, 2).tolist() == [0, 3]
    assert Feather(fixed=False, ratio=0.99).keep(flat, 36).tolist() == [0, 3, 18, 21]


@pytest.mark.parametrize("fixed", [True, False])
def test_where_nothing_is_left_nothing_is_ranked(fixed):
    for layer in (8, 16):
        view = Shown(torch.ones(0), layer=layer)
        assert Feather(fixed=fixed).keep(view, 0).tolist() == []
        assert view.asked == []


def test_only_the_union_is_adaptive_and_takes_no_budget():
    assert not Feather.adaptive
    assert not Feather().adaptive
    assert Feather(fixed=False).adaptive
    assert Feather(fixed=False).schedule(32, 100, 100) == {}
    with pytest.raises(BudgetError, match=r"feather\(fixed=False\) .* takes no budget, got 64"):
        Feather(fixed=False).schedule(32, 100, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Feather(layers=(4,)), r"layers must be two, .* got \(4,\)"),
        (lambda: Feather(layers=(8, 8)), r"layers must be two, ascending .* got \(8, 8\)"),
        (lambda: Feather(layers=(0, 8)), r"1 or more, .* got \(0, 8\)"),
        (lambda: Feather(ratio=0), "ratio must be between 0 and 1, got 0"),
        (lambda: Feather(ratio=1.0), "ratio must be between 0 and 1, got 1.0"),
        (lambda: Feather(stride=0), "stride must be 1 or more, got 0"),
        (lambda: Feather(fixed=1), "fixed must be True or False, got 1"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(VLMCompressError, match=message):
        make()


def test_an_attention_of_nan_is_refused_at_the_first_cut_as_well():
    view = Layer(Grid(1, 4, 4), layer=1, nan=True)
    with pytest.raises(VLMCompressError, match="NaN"):
        Feather().keep(view, 5)
