"""VisPruner against the rounds of its paper in Python."""

import math

import pytest
import torch
from shown import tokens

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods import vispruner
from vlmcompress.methods.vispruner import VisPruner
from vlmcompress.tokens import Grid


def pruned(rows, attention, count, ratio, step):
    """The rounds, in Python floats."""
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-attention[i], i))
    important = int(count * ratio)
    rest, wanted = order[important:], count - important
    if wanted == 0:
        return sorted(order[:important])
    while len(rest) > wanted:
        first, second = rest[::2], rest[1::2]
        closest = {
            i: max(sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for j in second)
            for i in first
        }
        ranked = sorted(range(len(first)), key=lambda place: (-closest[first[place]], place))
        dropped = min(step, len(rest) - wanted, len(first))
        rest = [first[place] for place in ranked[dropped:]] + second
    return sorted(order[:important] + rest)


def plane(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_hand_example():
    # By attention: 5, 2 | 0, 4, 1, 3, 6, 7. Of 0, 1, 6 against 4, 3, 7: token 0 is 5 degrees from
    # 4, 1 is 10 from 3, 6 is 40 from 7.
    features = plane(0, 90, 33, 100, 5, 200, 180, 220)
    attention = torch.tensor([0.6, 0.4, 0.8, 0.3, 0.5, 0.9, 0.2, 0.1])
    shown = tokens(Grid(1, 2, 4), features=features, cls_attention=attention)
    assert VisPruner(important_ratio=0.3).select(shown, 7).tolist() == [1, 2, 3, 4, 5, 6, 7]
    # With two a round 6 | 4, 3, 7 are left. Of 6, 3 against 4, 7: 6 is 40 from 7, 3 is 95 from 4.
    two = VisPruner(important_ratio=0.4, step=2)
    assert two.select(shown, 5).tolist() == [2, 3, 4, 5, 7]
    assert VisPruner(step=2).select(shown, 4).tolist() == [2, 4, 5, 7]
    # With three a round 4, 3, 7 are left. Of 4, 7 against 3: 4 is 95 away, 7 is 120.
    assert VisPruner(step=3).select(shown, 4).tolist() == [2, 3, 5, 7]


@pytest.mark.parametrize("matrix", [True, False], ids=["all similarities", "round by round"])
@pytest.mark.parametrize("ratio", [0, 0.5, 0.75, 1])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_it_follows_its_definition(step, ratio, matrix, monkeypatch):
    if not matrix:
        monkeypatch.setattr(vispruner, "MATRIX_BYTES", 0)
    method = VisPruner(step=step, important_ratio=ratio)
    for seed, size in [(0, 10), (1, 9), (2, 7), (3, 1), (4, 2)]:
        shown = tokens(Grid(1, 1, size), seed)
        rows, attention = shown.features.double().tolist(), shown.cls_attention.tolist()
        for count in range(size + 1):
            expected = pruned(rows, attention, count, ratio, step) if count else []
            assert method.select(shown, count).tolist() == expected


def test_frames_of_a_clip_are_pruned_one_by_one():
    shown = tokens(Grid(3, 2, 4))
    rows, attention = shown.features.double().tolist(), shown.cls_attention.tolist()
    expected = []
    for start, quota in [(0, 3), (8, 3), (16, 4)]:
        own = slice(start, start + 8)
        expected += [start + i for i in pruned(rows[own], attention[own], quota, 0.5, 8)]
    assert VisPruner().select(shown, 10).tolist() == expected


def test_duplicates_go_first():
    features = torch.eye(8)[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]]
    attention = 1 - torch.arange(16) / 16
    shown = tokens(Grid(1, 4, 4), features=features, cls_attention=attention)
    kept = VisPruner(important_ratio=0).select(shown, 8)
    assert sorted((kept // 2).tolist()) == list(range(8))


def test_counts_and_options():
    # 128 and 64 of 576, with 48 important and 16 diverse tokens, as in the official examples.
    assert VisPruner().keep_count(Grid(1, 24, 24), None) == 128
    for options, named in [
        ({"ratio": 0}, "ratio"),
        ({"important_ratio": 1.5}, "important_ratio"),
        ({"important_ratio": -0.1}, "important_ratio"),
        ({"step": 0}, "step"),
        ({"step": 2.5}, "step"),
    ]:
        with pytest.raises(VLMCompressError, match=f"vispruner: {named} must"):
            VisPruner(**options)
