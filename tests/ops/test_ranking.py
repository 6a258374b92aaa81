"""Places and ranks against plain Python."""

import pytest
import torch

from vlmcompress.ops.ranking import best, marked, ranks
from vlmcompress.ops.select import top_k


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_marked_places_are_those_of_nonzero(count):
    mask = torch.zeros(40, dtype=torch.bool)
    mask[torch.randperm(40, generator=torch.Generator().manual_seed(count))[:count]] = True
    assert marked(mask, count).tolist() == mask.nonzero()[:, 0].tolist()


def test_of_equal_scores_the_first_ranks_highest():
    assert ranks(torch.tensor([3.0, 1, 3, 2])).tolist() == [3, 0, 2, 1]
    assert ranks(torch.ones(4)).tolist() == [3, 2, 1, 0]
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)).round()
    order = sorted(range(50), key=lambda i: (-float(scores[i]), i))
    assert ranks(scores).tolist() == [49 - order.index(i) for i in range(50)]


def test_the_best_are_those_of_top_k():
    scores = torch.randn(60, generator=torch.Generator().manual_seed(0)).round()
    scores[7] = -torch.inf
    for count in (1, 9, 59, 60):
        assert torch.equal(best(scores, count), top_k(scores, count))
    assert best(scores, 0).tolist() == []


def test_nothing_has_no_places():
    assert marked(torch.zeros(0, dtype=torch.bool), 0).tolist() == []
    assert ranks(torch.zeros(0)).tolist() == []
