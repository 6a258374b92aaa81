"""The kernels of dpp_map and facility_location against their torch paths."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import coverage
from vlmcompress.ops._triton import coverage as kernels
from vlmcompress.ops.coverage import _NOTHING

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
BLOCKS = pytest.mark.parametrize("block", [1024, 8], ids=["one", "blocks"])

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.pairs]


def drawn(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@DTYPES
@BLOCKS
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (7, 7), (40, 9)])
def test_dpp_map(tokens, count, block, dtype, device):
    rows = drawn(tokens, 30, dtype=dtype, device=device)
    worth = drawn(tokens, device=device, seed=1).abs() + 0.1
    before = worth.clone()
    expected = coverage._most_probable(rows, count, worth, 2**30)
    # Three Cholesky rows at a time: several of them, the last incomplete.
    for part in (4, 16):
        found = kernels.dpp_map(rows, count, worth, _NOTHING, block, part)
        assert torch.equal(found, expected)
    assert torch.equal(worth, before)
    assert tokens == 1 or not torch.equal(expected, expected.sort().values)


def test_dpp_map_beyond_the_span(device):
    """Every Cholesky row counts, and what rounding leaves of a gain does not."""
    rows, worth = drawn(30, 10, device=device), torch.ones(30, device=device)
    expected = coverage._most_probable(rows, 16, worth, 2**30)
    assert expected[10:].tolist() == [i for i in range(30) if i not in expected[:10]][:6]
    for part in (4, 16):
        assert torch.equal(kernels.dpp_map(rows, 16, worth, _NOTHING, 16, part), expected)


@BLOCKS
def test_dpp_map_of_degenerate_rows(block, device):
    rows = torch.eye(4, device=device).repeat(5, 1)
    rows[1] = 0
    worth = torch.ones(20, device=device)
    worth[7] = 2
    expected = coverage._most_probable(rows, 20, worth, 2**30)
    assert expected[:5].tolist() == [7, 0, 2, 5, 1]
    assert torch.equal(kernels.dpp_map(rows, 20, worth, _NOTHING, block), expected)
    worth *= 1e-30
    assert torch.equal(kernels.dpp_map(rows, 20, worth, _NOTHING, block), expected)


@DTYPES
@BLOCKS
@pytest.mark.parametrize(("rows", "tokens", "count"), [(1, 1, 1), (3, 7, 7), (50, 20, 9)])
def test_facility_location(rows, tokens, count, block, dtype, device):
    """Sixteenths tie often, and no sum of them rounds."""
    similarity = (drawn(rows, tokens, device=device) * 16).round().div(16)
    weights = (drawn(tokens, device=device, seed=1).abs() * 4).round()
    similarity = similarity.to(dtype).float()
    for factors in (weights, torch.ones_like(weights)):
        expected = coverage._step_by_step(similarity, count, factors, 2**30)
        found = kernels.facility_location(similarity, count, factors, block)
        assert torch.equal(found, expected)
    assert tokens < 20 or not torch.equal(expected, expected.sort().values)


@BLOCKS
def test_equal_columns_and_nothing_to_gain(block, device):
    ones = torch.ones(20, device=device)
    for similarity in (torch.ones(9, 20, device=device), -torch.ones(20, 20, device=device)):
        found = kernels.facility_location(similarity, 20, ones, block)
        assert found.tolist() == list(range(20))
    # Equal columns far apart, gains that round.
    similarity = drawn(30, 7, device=device).repeat(1, 3)
    found = kernels.facility_location(similarity, 3, torch.ones(21, device=device), block)
    assert (found < 7).all()
    across = similarity.T.contiguous().T
    again = kernels.facility_location(across, 3, torch.ones(21, device=device), block)
    assert torch.equal(again, found)


def test_the_public_ops_reach_the_kernels(device, monkeypatch):
    rows = drawn(20, 8, device=device)

    def both():
        return coverage.dpp_map(rows, 5), coverage.facility_location(rows, 5)

    expected = both()
    monkeypatch.setenv("VLMCOMPRESS_OPS", "triton")
    calls = []
    for name in ("dpp_map", "facility_location"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(
            kernels,
            name,
            lambda *args, name=name, kernel=kernel: calls.append(name) or kernel(*args),
        )
    for found, picks in zip(both(), expected, strict=True):
        assert torch.equal(found, picks)
    assert calls == ["dpp_map", "facility_location"]
    assert torch.equal(coverage.dpp_map(rows, 5, max_bytes=0), expected[0])
    assert len(calls) == 2
    rows[3, 3] = torch.nan
    with pytest.raises(VLMCompressError, match="1 of 20 rows"):
        coverage.dpp_map(rows, 5)
    with pytest.raises(VLMCompressError, match="1 of 160"):
        coverage.facility_location(rows, 5)
