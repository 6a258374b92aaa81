"""HAWK against its formula in Python floats, and by hand."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.hawk import Hawk
from vlmcompress.tokens import Grid, VisualTokens


def shown(logits):
    logits = torch.as_tensor(logits)
    features = torch.randn(len(logits), 3, generator=torch.Generator().manual_seed(0))
    return VisualTokens(features, Grid(1, 1, len(logits)), question_logits=logits)


def scores(logits, weights, how="l2"):
    found = [0.0] * len(logits)
    for head, weight in enumerate(weights):
        column = [row[head] for row in logits]
        if how == "l2":
            scaled = [x / math.hypot(*column) for x in column]
        elif how == "softmax":
            scaled = [math.exp(x) / sum(map(math.exp, column)) for x in column]
        else:
            scaled = [(x - min(column)) / (max(column) - min(column)) for x in column]
        found = [f + weight * x for f, x in zip(found, scaled, strict=True)]
    return found


def highest(values, count):
    return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


# Keys (3, 1), (1, 3), (2, 2), (0, 1) of both heads, queries (2, 0) and (0, 2), over the root of 2.
HAND = torch.tensor([[6.0, 2.0], [2.0, 6.0], [4.0, 4.0], [0.0, 2.0]]) / math.sqrt(2)


def test_hand_example():
    expected = [0.6659, 0.3941, 0.5300, 0.0645]
    assert scores(HAND.tolist(), (0.75, 0.25)) == pytest.approx(expected, abs=1e-4)
    method = Hawk(ratio=0.5, weights=(0.75, 0.25))
    assert method.keep_count(Grid(1, 1, 4), None) == 2
    assert method.select(shown(HAND), 2).tolist() == [0, 2]
    assert Hawk(weights=(0.0, 1.0)).select(shown(HAND), 2).tolist() == [1, 2]


def test_opposite_heads_cancel_and_the_first_tokens_stay():
    assert Hawk().select(shown([[1.0, -1.0], [3.0, -3.0], [2.0, -2.0]]), 2).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", ["l2", "softmax", "minmax"])
@pytest.mark.parametrize("weights", [None, (0.1, 0.0, 0.6, 0.3)])
def test_by_definition(seed, how, weights):
    logits = torch.randn(11, 4, generator=torch.Generator().manual_seed(seed))
    expected = scores(logits.tolist(), weights or [0.25] * 4, how)
    for count in (0, 1, 5, 10, 11):
        found = Hawk(weights=weights, normalization=how).select(shown(logits), count)
        assert found.tolist() == highest(expected, count)


def test_published_weights_and_any_factor_of_them():
    logits = torch.randn(40, 28, generator=torch.Generator().manual_seed(1))
    named = Hawk(weights="qwen2.5-vl-7b").select(shown(logits), 12)
    from vlmcompress.methods.hawk import PUBLISHED
    from vlmcompress.methods.shared.published_tables import published

    heads = published(PUBLISHED)["qwen2.5-vl-7b"]["heads"]
    assert sum(heads) == pytest.approx(1.2616)
    assert Hawk(weights=tuple(7 * w for w in heads)).select(shown(logits), 12).equal(named)
    assert not Hawk().select(shown(logits), 12).equal(named)


def test_a_head_of_zeros_counts_nothing():
    logits = [[0.0, 3.0], [0.0, 1.0], [0.0, 2.0]]
    assert Hawk(weights=(9.0, 1.0)).select(shown(logits), 2).tolist() == [0, 2]


@pytest.mark.parametrize(("ratio", "count"), [(0.2, 8), (0.1, 4), (0.05, 2), (0.01, 1)])
def test_counts_are_rounded_up(ratio, count):
    assert Hawk(ratio=ratio).keep_count(Grid(1, 5, 8), None) == count
    assert Hawk(ratio=ratio).keep_count(Grid(1, 5, 8), 7) == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "llava"}, "weights are published for qwen2.5-vl-7b, got 'llava'"),
        ({"weights": (1.0, math.nan)}, "weights must be finite"),
        ({"normalization": "max"}, "normalization must be one of"),
        ({"ratio": 0.0}, "ratio must be above 0"),
    ],
    ids=str,
)
def test_options(options, words):
    with pytest.raises(VLMCompressError, match=words):
        Hawk(**options)


def test_weights_of_another_model():
    with pytest.raises(VLMCompressError, match="has 2 heads, got 28 weights"):
        Hawk(weights="qwen2.5-vl-7b").select(shown(HAND), 2)


def test_what_is_not_finite():
    with pytest.raises(VLMCompressError, match="question_logits must be finite"):
        Hawk().select(shown([[1.0], [math.inf], [2.0]]), 1)
    with pytest.raises(VLMCompressError, match="hawk needs question_logits"):
        Hawk().select(VisualTokens(torch.ones(3, 2), Grid(1, 1, 3)), 1)
