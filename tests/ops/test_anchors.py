"""Which anchor each row goes into, and what becomes of it, against plain Python."""

import math

import pytest
import torch
from plain import cosine, mean

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.anchors import means, nearest_anchor, nearest_centre


def rows_of(count, seed, width=5):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 10**6])
def test_each_row_goes_into_the_anchor_of_the_highest_cosine(seed, block):
    rows, anchors = rows_of(17, seed), [2, 5, 11, 16]
    found = nearest_anchor(rows, torch.tensor(anchors), max_bytes=block)
    plain = rows.tolist()
    for place, row in enumerate(plain):
        likeness = [cosine(row, plain[anchor]) for anchor in anchors]
        own = anchors.index(place) if place in anchors else likeness.index(max(likeness))
        assert int(found[place]) == own
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("seed", range(4))
def test_each_row_goes_to_the_nearest_centre(seed):
    rows, centres = rows_of(17, seed) + 100, [0, 8, 9]
    found, plain = nearest_centre(rows, torch.tensor(centres)), rows.tolist()
    for place, row in enumerate(plain):
        apart = [math.dist(row, plain[centre]) for centre in centres]
        assert int(found[place]) == apart.index(min(apart))


def test_ties_go_to_the_first_and_anchors_stay_their_own():
    same = torch.ones(5, 3)
    assert nearest_anchor(same, torch.tensor([1, 3])).tolist() == [0, 0, 0, 1, 0]
    assert nearest_centre(same, torch.tensor([1, 3])).tolist() == [0, 0, 0, 1, 0]


def test_hand_example_of_vscan():
    """0 and 2 are kept; the last is orthogonal to 2 and opposite to 0."""
    rows = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.2, 0.8], [-1, 0]])
    into = nearest_anchor(rows, torch.tensor([0, 2]))
    assert into.tolist() == [0, 0, 1, 1, 1]
    expected = torch.tensor([[0.95, 0.05], [-0.2667, 0.6]])
    assert torch.allclose(means(rows, into, 2), expected, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_means_are_of_all_that_went_in(weighted):
    rows, into = rows_of(12, 1), torch.tensor([0, 1, 2, 0, 1, 0, 0, 1, 1, 0, 1, 0])
    weights = torch.arange(1.0, 13) if weighted else None
    found = means(rows, into, 3, weights)
    for group in range(3):
        own = [i for i in range(12) if into[i] == group]
        times = [int(weights[i]) if weighted else 1 for i in own]
        repeated = [rows[i].tolist() for i, n in zip(own, times, strict=True) for _ in range(n)]
        assert found[group].tolist() == pytest.approx(mean(repeated), abs=1e-5)
    assert torch.equal(found[2], rows[2]), "a row that is alone keeps its bits"
    assert not torch.equal(found[0], rows[0])


def test_half_precision_is_compared_as_float32():
    rows = rows_of(20, 2).bfloat16()
    anchors = torch.tensor([3, 4, 12])
    assert torch.equal(nearest_anchor(rows, anchors), nearest_anchor(rows.float(), anchors))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_anchor(rows.float(), anchors), nearest_anchor(rows, anchors))


def test_what_is_not_finite_is_an_error():
    rows = rows_of(5, 0)
    rows[3] = torch.nan
    with pytest.raises(VLMCompressError, match="finite"):
        nearest_anchor(rows, torch.tensor([0]))
