"""CoreMatching: neurons in common, and the elbow."""

import pytest
import torch
from shown import Layer

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.corematching import CoreMatching
from vlmcompress.tokens import Grid


def firing(shared, neurons=12):
    """A layer whose visual tokens fire as many neurons of the last token as given."""
    view = Layer(Grid(1, 1, len(shared)))
    view.gates = torch.full((len(view.hidden), neurons), -1.0)
    view.gates[view.text[-1], :10] = 0.5
    view.gates[view.visual, 10:] = 2.0  # neurons that the last token does not fire
    for column, count in zip(view.visual.tolist(), shared, strict=True):
        view.gates[column, :count] = 0.1
    return view


def test_the_hand_example_keeps_what_is_above_the_elbow():
    view, method = firing([3, 10, 1, 8, 9, 2]), CoreMatching()
    assert method.score(view).tolist() == [3, 10, 1, 8, 9, 2]
    assert method.keep(view, 6).tolist() == [1, 4]
    assert method.keep(view, 3).tolist() == [1, 3, 4]
    assert method.keep(view, 0).tolist() == []


def test_zero_does_not_fire():
    view = firing([4, 4])
    view.gates[view.visual[0], :2] = 0.0
    assert CoreMatching().score(view).tolist() == [2, 4]


@pytest.mark.parametrize("seed", range(4))
def test_scores_against_loops(seed):
    view = Layer(Grid(1, 3, 3), seed=seed)
    last = view.gates[view.text[-1]]
    expected = [
        sum(float(a > 0 and b > 0) for a, b in zip(view.gates[c], last, strict=True))
        for c in view.visual.tolist()
    ]
    assert CoreMatching().score(view).tolist() == expected


def test_many_tokens_are_counted_block_by_block(monkeypatch):
    view = Layer(Grid(1, 5, 5))
    whole = CoreMatching().score(view)
    monkeypatch.setattr("vlmcompress.methods.corematching._ROWS", 4)
    assert torch.equal(CoreMatching().score(view), whole)


@pytest.mark.parametrize("shared", [[5], [5, 3], [4, 4, 4], [9, 6, 3]])
def test_without_an_elbow_all_stay(shared):
    assert CoreMatching().keep(firing(shared), len(shared)).tolist() == list(range(len(shared)))


def test_ties_keep_the_first():
    assert CoreMatching().keep(firing([2, 7, 7, 7]), 2).tolist() == [1, 2]


def test_without_a_budget_the_schedule_is_an_upper_bound():
    assert CoreMatching().schedule(32, 576, None) == {2: 576}
    assert CoreMatching().schedule(32, 576, 64) == {2: 30}


def test_options_are_checked():
    with pytest.raises(VLMCompressError, match="corematching: k must be 1 or more, got 0"):
        CoreMatching(k=0)


def test_autocast_rounds_no_numbers():
    shared = [299, 300, 298, 297, 301]
    view = Layer(Grid(1, 1, len(shared)))
    view.gates = torch.full((len(view.hidden), 301), -1.0)
    view.gates[view.text[-1]] = 0.5
    for column, count in zip(view.visual.tolist(), shared, strict=True):
        view.gates[column, :count] = 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert CoreMatching().score(view).tolist() == shared
        assert CoreMatching().keep(view, 2).tolist() == [1, 4]
