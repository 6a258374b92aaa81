"""The kernel of `take` against its torch path: the same bits."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.ops._triton.gather import take as kernel
from vlmcompress.ops.gather import take_all

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _torch_path(monkeypatch, poisoned):
    monkeypatch.setenv("VLMCOMPRESS_OPS", "torch")


def drawn(shape, dtype, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def places(length, batch, count, device):
    draw = torch.Generator().manual_seed(1)
    index = torch.randint(length, (batch, count), generator=draw)
    return index.to(device)


def same(tensors, index, block):
    found = kernel(tensors, index, block)
    for x, one, expected in zip(tensors, found, take_all(tensors, index), strict=True):
        assert one.dtype == x.dtype
        assert one.is_contiguous()
        assert torch.equal(one, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 63, 64, 130])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_tensor(batch, width, dtype, device):
    x = drawn((batch, 9, width), dtype, device)
    for count in (1, 5):
        same([x], places(9, batch, count, device), 64)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_as_many_as_there_are(count, device):
    """Hidden states, cos, a mask and positions, then the same again: more than one launch holds."""
    kinds = [
        drawn((2, 11, 70), torch.bfloat16, device),
        drawn((1, 11, 17), torch.float32, device),
        drawn((2, 11), torch.float32, device) > 0,
        places(99, 2, 11, device),
    ]
    tensors = (kinds * 3)[:count]
    assert len({tuple(x.shape) for x in tensors}) == min(count, 3)
    same(tensors, places(11, 2, 6, device), 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype, device):
    whole = drawn((2, 12, 40), dtype, device)
    tensors = [
        whole[:, ::2],
        whole[..., 1::3][:, :6],
        whole[:, :6, :6].transpose(1, 2),
        whole[:1, :6].expand(2, 6, 40),
        whole[:, :6, 3],
        whole[:, :6].unflatten(2, (4, 10)).transpose(2, 3),
    ]
    same(tensors, places(6, 2, 8, device)[:, ::2], 16)


def test_m_rope_positions(device):
    from vlmcompress.ops.gather import axes_last

    positions = places(99, 3, 14, device).view(3, 2, 7)
    same([axes_last(positions)], places(7, 2, 5, device), 16)


def test_nothing_to_take(device):
    x = drawn((2, 5, 3), torch.float32, device)
    same([x], places(5, 2, 0, device), 16)
    same([x[..., :0]], places(5, 2, 3, device), 16)
    same([x[..., :0], x], places(5, 2, 3, device), 16)
    assert kernel([], places(5, 2, 3, device), 16) == []


def test_the_public_op_dispatches(device, monkeypatch):
    x, index = drawn((2, 9, 5), torch.float32, device), places(9, 2, 4, device)
    expected = take_all([x, x > 0], index)
    calls = []
    monkeypatch.setenv("VLMCOMPRESS_OPS", "triton")
    monkeypatch.setattr(
        "vlmcompress.ops._triton.gather.take", lambda *a: calls.append(a) or kernel(*a)
    )
    found = take_all([x, x > 0], index)
    assert len(calls) == 1
    assert all(map(torch.equal, found, expected))
