"""The nearest words of a vocabulary."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.nearest_rows import nearest_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 2, 7, 20, 100])
@pytest.mark.parametrize("count", [1, 3, 20, 99])
def test_blocks_give_what_all_cosines_at_once_give(count, block):
    rows, table = random(5, 4), random(20, 4, seed=1)
    cosines, ids = nearest_rows(rows, table, count, block=block)
    whole = torch.cosine_similarity(rows[:, None], table[None], dim=-1)
    expected = whole.sort(descending=True, stable=True)
    assert torch.equal(ids, expected.indices[:, :count])
    assert torch.allclose(cosines, expected.values[:, :count], atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_of_equal_words_the_first_is_nearest(block):
    table = torch.tensor([[0.0, 1], [1, 0], [0, 2], [3, 0], [0, 3]])
    rows = torch.tensor([[0.0, 1], [0, 0]])
    assert nearest_rows(rows, table, 3, block=block)[1].tolist() == [[0, 2, 4], [0, 1, 2]]


def test_half_precision_is_compared_in_float32():
    rows, table = random(9, 64).bfloat16(), random(50, 64, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_rows(rows, table, 3)
    assert torch.equal(found[0], nearest_rows(rows.float(), table.float(), 3)[0])


def test_words_that_are_no_numbers_are_refused():
    with pytest.raises(VLMCompressError, match="the vocabulary must be finite: 1 of 3 rows"):
        nearest_rows(torch.ones(2, 2), torch.tensor([[1.0, 0], [torch.nan, 0], [0, 1]]), 1)
