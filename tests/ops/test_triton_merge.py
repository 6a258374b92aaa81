"""The kernels of merging against their torch paths."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.ops._triton import merge as kernels
from vlmcompress.ops.groups import segment_sum, segments
from vlmcompress.ops.merge import best_match, bipartite, energy_matching, three_factor
from vlmcompress.ops.similarity import unit_rows

pytestmark = pytest.mark.pairs

DTYPES = [torch.float32, torch.bfloat16]
BLOCKS = (16, 16, 16)


@pytest.fixture(autouse=True)
def _torch_path(monkeypatch, poisoned):
    monkeypatch.setenv("VLMCOMPRESS_OPS", "torch")


def drawn(*shape, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def unit(*shape, device, seed=0):
    return unit_rows(drawn(*shape, device=device, seed=seed))


def agree(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(1, 1, 1), (7, 63, 5), (63, 7, 16), (17, 130, 33), (130, 33, 7)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_best_columns_by_cosine(batch, rows, columns, width, device):
    x = unit(batch, rows, width, device=device)
    y = unit(batch, columns, width, device=device, seed=1)
    if width == 1:
        x, y = x.abs(), y.abs()
    agree(kernels.best_match(x, y, blocks=BLOCKS), best_match(x, y))


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(5, 40), (33, 19)])
def test_best_columns_by_three_factors(rows, columns, closing, device):
    x, y = unit(2, rows, 9, device=device), unit(2, columns, 9, device=device, seed=1)
    own, their = (drawn(2, n, device=device, seed=n).exp() for n in (rows, columns))
    closed = drawn(2, columns, device=device, seed=3) > 0 if closing else None
    for power in (1.0, 0.5, 2.0):
        arguments = (x, y, (own, their), power, closed)
        agree(kernels.best_match(*arguments, blocks=BLOCKS), best_match(*arguments))
    plain = best_match(x, y)
    assert not torch.equal(best_match(*arguments)[1], plain[1])


def test_closed_columns_are_never_found(device):
    x, y = unit(1, 20, 4, device=device), unit(1, 37, 4, device=device, seed=1)
    closed = torch.ones(1, 37, dtype=torch.bool, device=device)
    closed[0, 34] = False
    weight, found = kernels.best_match(x, y, closed=closed, blocks=BLOCKS)
    assert found.unique().tolist() == [34]
    torch.testing.assert_close(weight, (x @ y[0, 34]))
    # With none open, the first: as torch has it.
    weight, found = kernels.best_match(x, y, closed=torch.ones_like(closed), blocks=BLOCKS)
    assert weight.unique().tolist() == [-torch.inf]
    assert found.unique().tolist() == [0]


def test_ties_go_to_the_lowest_column_in_and_across_blocks(device):
    x = torch.eye(4, device=device)[None]
    y = torch.eye(4, device=device)[[3, 2, 1, 3] * 12][None]
    found = kernels.best_match(x, y, blocks=BLOCKS)[1]
    assert found.tolist() == best_match(x, y)[1].tolist() == [[0, 2, 1, 0]]
    late = torch.eye(4, device=device)[[1] * 20 + [0, 3, 0] + [0] * 20][None]
    assert kernels.best_match(x, late, blocks=BLOCKS)[1][0, 0].item() == 20


def test_strided_sides(device):
    x = unit(2, 41, 6, device=device)
    agree(
        kernels.best_match(x[:, 1::2], x[:, ::2], blocks=BLOCKS), best_match(x[:, 1::2], x[:, ::2])
    )
    turned = unit(2, 6, 41, device=device).transpose(1, 2)
    agree(kernels.best_match(turned, x, blocks=BLOCKS), best_match(turned, x))
    assert kernels.best_match(x[:, :0], x)[1].shape == (2, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 63, 130])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_segments(width, dtype, weighted, device):
    values = drawn(50, width, device=device).to(dtype)
    members = torch.randint(50, (90,), generator=torch.Generator().manual_seed(0)).to(device)
    offsets = torch.tensor([0, 0, 1, 40, 41, 90, 90], device=device)
    weights = drawn(90, device=device, seed=1) if weighted else None
    found = kernels.segment_sum(values, members, offsets, weights, block=64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, segment_sum(values, members, offsets, weights))
    again = kernels.segment_sum(values, members, offsets, weights, block=64)
    assert torch.equal(found, again)


def test_what_is_alone_keeps_its_bits(device):
    values = drawn(9, 33, device=device).bfloat16()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).to(device)
    members, offsets = segments(order, 9)
    found = kernels.segment_sum(values, members, offsets, torch.ones(9, device=device), block=16)
    assert torch.equal(found, values[members].float())
    assert not torch.equal(members, torch.arange(9, device=device))


def test_strided_values_and_no_segments(device):
    whole = drawn(12, 40, device=device)
    members, offsets = torch.arange(6, device=device), torch.tensor([0, 2, 6], device=device)
    for values in (whole[::2], whole[:6, 1::3], whole[:, :6].T):
        found = kernels.segment_sum(values, members, offsets, block=16)
        torch.testing.assert_close(found, segment_sum(values, members, offsets))
    assert kernels.segment_sum(whole, members[:0], offsets[:1]).shape == (0, 40)


def test_the_public_ops_dispatch(device, monkeypatch):
    x = drawn(2, 21, 6, device=device)
    attention = drawn(2, 21, device=device, seed=1).exp()

    def matched():
        return [
            bipartite(x, 8, 1),
            energy_matching(x, 7, 0.3),
            three_factor(x, attention, torch.ones_like(attention), 9),
        ]

    def summed():
        return segment_sum(
            x[0], torch.arange(21, device=device), torch.tensor([0, 9, 21]).to(x.device)
        )

    expected, sums = matched(), summed()
    calls = []
    monkeypatch.setenv("VLMCOMPRESS_OPS", "triton")
    for name in ("best_match", "segment_sum"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *a, name=name, kernel=kernel: calls.append(name) or kernel(*a)
        )
    assert all(map(torch.equal, matched(), expected))
    torch.testing.assert_close(summed(), sums)
    assert calls == ["best_match"] * 4 + ["segment_sum"]
