"""Tokens taken together, against plain indexing."""

import pytest
import torch

from vlmcompress.ops.gather import axes_first, axes_last, take, take_all, take_pairs

SHAPES = [(1, 7, (5,)), (3, 7, (5,)), (1, 4, ()), (3, 9, ()), (2, 6, (1, 4)), (2, 6, (0,))]


def numbers(shape, dtype=torch.float32):
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def plain(x, index):
    """Token by token."""
    rows = [[x[b if len(x) > 1 else 0, i] for i in row] for b, row in enumerate(index.tolist())]
    empty = x.new_empty(index.shape + x.shape[2:])
    return empty if not index.numel() else torch.stack([torch.stack(row) for row in rows])


def positions_in(length, batch, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=draw)[:count] for _ in range(batch)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize(("batch", "length", "inner"), SHAPES)
def test_tokens_are_those_at_the_index(batch, length, inner, dtype):
    x = numbers((batch, length, *inner), dtype)
    for count in (0, 1, 3, length):
        index = positions_in(length, batch, count)
        taken = take(x, index)
        assert taken.dtype == dtype
        assert taken.is_contiguous()
        assert torch.equal(taken, plain(x, index))


def test_one_row_serves_all_rows_of_the_index():
    for x in (numbers((1, 6, 4)), numbers((1, 6))):
        index = positions_in(6, 3, 2)
        assert not torch.equal(index[0], index[1])
        assert torch.equal(take(x, index), plain(x, index))


@pytest.mark.parametrize(
    "x",
    [
        numbers((2, 12, 4))[:, ::2],
        numbers((6, 2, 4)).transpose(0, 1),
        numbers((2, 4, 6)).transpose(1, 2),
        numbers((1, 6, 4)).expand(2, 6, 4),
        numbers((2, 6, 8))[..., 1::2],
        numbers((2, 6, 3, 4)).transpose(2, 3),
    ],
)
def test_strides_change_nothing(x):
    index = positions_in(6, 2, 3)
    assert torch.equal(take(x, index), plain(x, index))


def test_several_tensors_of_all_kinds_are_taken_together():
    kinds = [
        numbers((2, 8, 5)),
        numbers((1, 8, 3), torch.bfloat16),
        numbers((2, 8)) % 2 > 0,
        numbers((1, 8), torch.int64),
        numbers((2, 8, 2, 2), torch.float16),
    ]
    index = positions_in(8, 2, 4)
    for taken, x in zip(take_all(kinds, index), kinds, strict=True):
        assert taken.dtype == x.dtype
        assert torch.equal(taken, plain(x, index))


def test_positions_of_one_and_of_three_axes():
    index = positions_in(7, 2, 3)
    for batch in (1, 2):
        one, three = numbers((batch, 7), torch.int64), numbers((3, batch, 7), torch.int64)
        assert axes_first(axes_last(one)) is one
        taken = axes_first(take(axes_last(three), index))
        assert torch.equal(taken, torch.stack([plain(axis, index) for axis in three]))
        assert taken.is_contiguous()


def test_rows_and_columns_of_a_mask():
    rows, columns = positions_in(7, 2, 3), positions_in(9, 2, 4, seed=1)
    for batch in (1, 2):
        mask = torch.randn(batch, 7, 9)
        for kind in (mask, mask > 0):
            expected = [kind[b % batch][rows[b]][:, columns[b]] for b in range(2)]
            assert torch.equal(take_pairs(kind, rows, columns), torch.stack(expected))


def test_nothing_waits_for_the_device():
    """Tensors on "meta" have no data: whoever asks for some fails."""
    index = torch.zeros(2, 3, dtype=torch.long, device="meta")
    for x in (torch.zeros(2, 8, 5), torch.zeros(1, 8, 5), torch.zeros(2, 8)):
        assert take(x.to("meta"), index).shape == (2, 3, *x.shape[2:])
