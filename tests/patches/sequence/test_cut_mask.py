"""The mask of a layer that sees fewer tokens, against one index after the other."""

import pytest
import torch

from vlmcompress.patches.sequence.packing import cut_mask

CACHED = 3
ROWS = torch.tensor([[0, 2, 3], [1, 2, 3]])
KEYS = torch.tensor([[0, 2, 3, 5, 6], [1, 2, 4, 5, 6]])
"""Of 4 queries and 7 keys, 3 of which an earlier turn left."""
VALID = torch.tensor([[True] * 5, [False] + [True] * 4])


def given(kind):
    g = torch.Generator().manual_seed(0)
    opened = torch.rand(2, 1, 4, 7, generator=g) > 0.3
    if kind == "bool":
        return opened
    return torch.zeros(2, 1, 4, 7).masked_fill(~opened, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("valid", [None, VALID], ids=["all valid", "fillers"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_and_keys_of_a_given_mask(kind, valid):
    mask = given(kind)
    found = cut_mask(mask, ROWS, KEYS, valid, CACHED, flash=False)
    closed = False if kind == "bool" else torch.finfo(torch.float32).min
    for b in range(2):
        for q, row in enumerate(ROWS[b]):
            for k, key in enumerate(KEYS[b]):
                whole = mask[b, 0, row, key]
                wanted = whole if valid is None or valid[b, k] else closed
                assert found[b, 0, q, k] == wanted


def test_a_mask_is_made_where_none_was_given():
    found = cut_mask(None, ROWS, KEYS, VALID, CACHED, flash=False)
    for b in range(2):
        for q, row in enumerate(ROWS[b]):
            for k, key in enumerate(KEYS[b]):
                assert found[b, 0, q, k] == (key <= row + CACHED and VALID[b, k])
    assert cut_mask(None, ROWS, KEYS, None, CACHED, flash=False) is None
