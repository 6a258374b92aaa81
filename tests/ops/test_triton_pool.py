"""The kernel of pooling against its torch path."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.ops._triton import pool as kernels
from vlmcompress.ops.pool import strided, window
from vlmcompress.tokens import Grid

pytestmark = pytest.mark.pairs

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, poisoned):
    """Calls of the kernel, with blocks that grids overrun."""
    calls, kernel = [], kernels.pool

    def counted(*arguments):
        calls.append(arguments)
        return kernel(*arguments, blocks=(16, 4))

    monkeypatch.setattr(kernels, "pool", counted)
    return calls


def drawn(*shape, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def both(monkeypatch, calls, op, *arguments):
    made = []
    for choice in ("torch", "triton"):
        monkeypatch.setenv("VLMCOMPRESS_OPS", choice)
        before = len(calls)
        made.append(op(*arguments))
        assert len(calls) - before == (choice == "triton")
    plain, found = made
    assert found.groups() == plain.groups()
    assert found.features.dtype == plain.features.dtype == arguments[0].dtype
    torch.testing.assert_close(found.features, plain.features)
    return plain.features


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("grid", "shape"),
    [
        (Grid(1, 1, 1), (1, 1)),
        (Grid(1, 7, 9), (3, 4)),
        (Grid(2, 3, 5), (2, 3)),
        (Grid(5, 3, 2), (2, 3, 1)),
        (Grid(3, 4, 13), (2, 1, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [1, 7, 63])
def test_adaptive_windows(grid, shape, width, dtype, device, small_blocks, monkeypatch):
    features = drawn(len(grid), width, device=device).to(dtype)
    both(monkeypatch, small_blocks, window, features, grid, shape)


@pytest.mark.rotating(axis="dtype", by="axes", count=1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("grid", "axes"),
    [
        (Grid(1, 4, 4), [(1, 1, 1), (2, 2, 2), (2, 2, 2)]),
        (Grid(5, 4, 7), [(2, 2, 2), (3, 1, 2), (3, 3, 2)]),
        (Grid(2, 3, 11), [(2, 1, 1), (2, 1, 2), (9, 2, 2)]),
    ],
    ids=str,
)
def test_weighted_windows(grid, axes, dtype, device, small_blocks, monkeypatch):
    features = drawn(len(grid), 33, device=device).to(dtype)
    scores = drawn(len(grid), device=device, seed=1) * 3
    plain = both(monkeypatch, small_blocks, strided, features, grid, axes)
    weighted = both(monkeypatch, small_blocks, strided, features, grid, axes, scores)
    assert not torch.allclose(plain, weighted)
    # Exponentials of these overflow unless the largest of the window is known.
    steep = scores + torch.linspace(0, 400, len(grid), device=device)
    assert both(monkeypatch, small_blocks, strided, features, grid, axes, steep).isfinite().all()


def test_strided_features_and_scores(device, small_blocks, monkeypatch):
    grid, axes = Grid(2, 3, 4), [(1, 1, 2), (2, 1, 2), (2, 2, 2)]
    whole, scores = drawn(48, 40, device=device), drawn(48, device=device, seed=1)
    for features in (whole[::2], whole[:24, 1::3], whole[:, :24].T):
        both(monkeypatch, small_blocks, strided, features, grid, axes, scores[::2])


def test_features_without_numbers(device, small_blocks, monkeypatch):
    both(monkeypatch, small_blocks, window, torch.zeros(4, 0, device=device), Grid(1, 2, 2), (1, 2))
