"""ToDRE, stage 1: where it starts, and the hand example; max_sum has tests of its own."""

import pytest
import torch
from shown import tokens

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.todre_select import TodreSelect
from vlmcompress.ops.select import max_sum
from vlmcompress.tokens import Grid, VisualTokens


def test_hand_example():
    angles = torch.tensor([0, 10, 40, 100, 170, 205]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    attention = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    shown = VisualTokens(features, Grid(1, 2, 3), cls_attention=attention)
    assert TodreSelect().pick(shown, 6).tolist() == [0, 4, 5, 1, 3, 2]
    assert TodreSelect().select(shown, 3).tolist() == [0, 4, 5]


def test_the_pivot_is_where_cls_looks_in_all_frames():
    grid = Grid(2, 2, 3)
    attention = torch.zeros(12)
    attention[[8, 3]] = torch.tensor([0.4, 0.3])
    shown = tokens(grid, cls_attention=attention)
    expected = max_sum(shown.features, 5, 8, order="picked").tolist()
    assert expected[0] == 8
    assert TodreSelect().pick(shown, 5).tolist() == expected
    assert TodreSelect().select(shown, 5).tolist() == sorted(expected)
    assert TodreSelect().select(shown, -1).tolist() == []
    # Of equals the first.
    attention[3] = 0.4
    assert TodreSelect().pick(tokens(grid, cls_attention=attention), 1).tolist() == [3]


def test_without_cls_the_pivot_is_random_but_always_the_same():
    def pivot(seed, **place):
        shown = VisualTokens(tokens(Grid(1, 5, 8)).features, Grid(1, 5, 8), **place)
        state = torch.get_rng_state()
        found = TodreSelect(seed=seed).pick(shown, 1).tolist()
        assert torch.equal(torch.get_rng_state(), state)
        return found[0]

    assert pivot(3) == pivot(3)
    assert len({pivot(seed) for seed in range(30)}) > 10
    assert len({pivot(0, index=i, part=p) for i in range(4) for p in range(4)}) > 5


def test_counts_and_options():
    # 2880 tokens of LLaVA-NeXT: 720, and 288.
    assert TodreSelect().keep_count(Grid(1, 48, 60), None) == 720
    assert TodreSelect(ratio=0.1).keep_count(Grid(1, 48, 60), None) == 288
    assert TodreSelect().keep_count(Grid(1, 1, 1), None) == 1
    for options, named in [
        ({"ratio": 1.1}, "ratio"),
        ({"seed": -1}, "seed"),
        ({"seed": "a"}, "seed"),
    ]:
        with pytest.raises(VLMCompressError, match=f"todre-select: {named}"):
            TodreSelect(**options)
