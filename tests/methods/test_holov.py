"""HoloV: crops, scores and quotas against loops."""

import math

import pytest
import torch
from shown import tokens

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.holov import HoloV
from vlmcompress.tokens import Grid


def crops(grid, side):
    """Tokens of a frame by crop."""
    a, b = min(side, grid.h), min(side, grid.w)
    found = {(i, j): [] for i in range(a) for j in range(b)}
    for row in range(grid.h):
        for column in range(grid.w):
            i = max(i for i in range(a) if i * grid.h // a <= row)
            j = max(j for j in range(b) if j * grid.w // b <= column)
            found[i, j].append(row * grid.w + column)
    return list(found.values())


def scores(rows, attention, alpha, beta):
    """Of the tokens of a crop, in Python floats."""
    n = len(rows)
    if n == 1:
        return [alpha * attention[0]]

    def cosine(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    variance = []
    for i in range(n):
        others = [cosine(rows[i], rows[j]) for j in range(n) if j != i]
        mean = sum(others) / (n - 1)
        variance.append(sum((x - mean) ** 2 for x in others) / (n - 1))
    scale = (sum(attention) / n) / (sum(variance) / n + 1e-6)
    return [alpha * a + beta * scale * v for a, v in zip(attention, variance, strict=True)]


def quotas(weights, sizes, count):
    """Floors, then one each for the heaviest; what is over the size is dealt again."""
    dealt = [0] * len(sizes)
    while sum(dealt) < count:
        left = count - sum(dealt)
        room = [i for i in range(len(sizes)) if dealt[i] < sizes[i]]
        total = sum(weights[i] for i in room)
        extra = {i: math.floor(left * weights[i] / total) for i in room}
        heaviest = sorted(room, key=lambda i: (-weights[i], i))
        for i in heaviest[: left - sum(extra.values())]:
            extra[i] += 1
        for i in room:
            dealt[i] = min(sizes[i], dealt[i] + extra[i])
    return dealt


def holistic(grid, rows, attention, count, side, alpha=1.0, beta=0.09):
    kept, found = [], crops(grid, side)
    marks = [scores([rows[i] for i in c], [attention[i] for i in c], alpha, beta) for c in found]
    weights = [sum(mark) / len(mark) for mark in marks]
    shares = quotas(weights, [len(crop) for crop in found], count)
    for crop, mark, quota in zip(found, marks, shares, strict=True):
        best = sorted(range(len(crop)), key=lambda place: (-mark[place], place))
        kept += [crop[place] for place in best[:quota]]
    return sorted(kept)


def test_hand_example_of_quotas():
    # Crops 0 1 4 5 | 2 3 6 7 | 8 9 12 13 | 10 11 14 15 with 6, 2, 1 and 1 of 10 parts.
    attention = torch.zeros(16)
    attention[[0, 1, 4, 5]] = torch.tensor([0.12, 0.18, 0.14, 0.16])
    attention[[2, 3, 6, 7]] = torch.tensor([0.04, 0.05, 0.06, 0.05])
    attention[[8, 9, 12, 13]] = torch.tensor([0.03, 0.02, 0.025, 0.025])
    attention[[10, 11, 14, 15]] = torch.tensor([0.02, 0.025, 0.025, 0.03])
    shown = tokens(Grid(1, 4, 4), cls_attention=attention)
    method = HoloV(side=2, beta=0)
    # 3 -> 1.8, 0.6, 0.3, 0.3: 1 and the two left for the heaviest.
    assert method.select(shown, 3).tolist() == [1, 5, 6]
    # 5 -> 3, 1, 0.5, 0.5: one left, and the heaviest takes it.
    assert method.select(shown, 5).tolist() == [0, 1, 4, 5, 6]
    # 7 -> 4.2, 1.4, 0.7, 0.7: two left, and the heaviest is full; its token goes on to the second.
    assert method.select(shown, 7).tolist() == [0, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize(
    "grid", [Grid(1, 2, 5), Grid(1, 3, 3), Grid(1, 1, 8), Grid(1, 5, 4), Grid(1, 7, 6)], ids=str
)
def test_it_follows_its_definition_on_every_grid(grid, side):
    for seed in range(3):
        shown = tokens(grid, seed)
        rows, attention = shown.features.double().tolist(), shown.cls_attention.double().tolist()
        for count in range(len(grid) + 1):
            expected = holistic(grid, rows, attention, count, side)
            assert HoloV(side=side).select(shown, count).tolist() == expected


def test_frames_of_a_clip_are_cut_one_by_one():
    grid = Grid(2, 4, 4)
    shown = tokens(grid)
    rows, attention = shown.features.double().tolist(), shown.cls_attention.double().tolist()
    expected = []
    for start, quota in [(0, 5), (16, 6)]:
        own = slice(start, start + 16)
        kept = holistic(grid, rows[own], attention[own], quota, 2)
        expected += [start + i for i in kept]
    assert HoloV(side=2).select(shown, 11).tolist() == expected


def test_attention_in_one_corner_does_not_take_the_whole_budget():
    attention = torch.full((64,), 0.01)
    corner = [row * 8 + column for row in range(4) for column in range(4)]
    attention[corner] = 0.02
    shown = tokens(Grid(1, 8, 8), cls_attention=attention)
    kept = HoloV().select(shown, 16).tolist()
    assert len(set(kept) & set(corner)) < 9
    # Every quarter of the image keeps something.
    assert {(i // 8 // 4, i % 8 // 4) for i in kept} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert HoloV(side=1, beta=0).select(shown, 16).tolist() == corner


def test_variance_has_a_say():
    shown = tokens(Grid(1, 4, 4))
    kept = [HoloV(side=1, beta=beta).select(shown, 6).tolist() for beta in (0, 0.09, 1e6)]
    assert kept[0] != kept[2]
    variance_only = HoloV(side=1, alpha=0, beta=1).select(shown, 6).tolist()
    assert kept[2] == variance_only


def test_without_any_attention_crops_share_alike():
    shown = tokens(Grid(1, 4, 4), cls_attention=torch.zeros(16))
    assert HoloV(side=2).select(shown, 8).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_counts_and_options():
    assert HoloV().keep_count(Grid(1, 24, 24), None) == 64
    for options, named in [
        ({"ratio": 0}, "ratio"),
        ({"side": 0}, "side"),
        ({"alpha": -1}, "alpha"),
        ({"beta": float("nan")}, "beta"),
        ({"beta": "much"}, "beta"),
    ]:
        with pytest.raises(VLMCompressError, match=f"holov: {named} must"):
            HoloV(**options)
