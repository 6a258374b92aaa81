"""The kernels of farthest_point and max_sum against their torch paths."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import select
from vlmcompress.ops._triton import select as kernels
from vlmcompress.ops.similarity import self_cosines, unit_rows

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# One block is held on chip; several are not, the last of them incomplete.
BLOCKS = pytest.mark.parametrize("block", [4096, 8], ids=["held", "blocks"])

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.pairs]


def drawn(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@DTYPES
@pytest.mark.parametrize(
    ("tokens", "width", "tile"), [(1, 1, 16), (7, 63, 16), (33, 130, 16), (130, 40, 64)]
)
def test_cosines(tokens, width, tile, dtype, device):
    images = drawn(2, tokens, width, dtype=dtype, device=device)
    images[1, tokens // 2] = 0
    made, norm = kernels.cosine_matrix(images, tile)
    assert torch.equal(made, made.mT)
    for image, found, length in zip(images, made, norm, strict=True):
        torch.testing.assert_close(found, self_cosines(unit_rows(image)), atol=2e-6, rtol=0)
        torch.testing.assert_close(length, image.float().norm(dim=-1))
    assert norm[1, tokens // 2] == 0


@DTYPES
@BLOCKS
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (7, 7), (16, 5), (40, 9)])
def test_farthest_point(tokens, count, block, dtype, device):
    images = drawn(3, tokens, 20, dtype=dtype, device=device)
    expected = select._dense(images, count)
    assert torch.equal(kernels.farthest_point(images, count, block), expected)
    if tokens == 40:
        assert len(expected.unique(dim=0)) == 3
        for image, picks in zip(images, expected, strict=True):
            assert torch.equal(kernels.farthest_point(image[None], count, block)[0], picks)


@DTYPES
@BLOCKS
@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (7, 7), (40, 9)])
def test_max_sum(tokens, count, block, dtype, device):
    rows = drawn(tokens, 20, dtype=dtype, device=device)
    expected = select._least_sum(rows, count, tokens // 2, 2**30)
    found = kernels.max_sum(rows, count, tokens // 2, block)
    assert torch.equal(found, expected)
    assert found[0] == tokens // 2


@BLOCKS
def test_ties_and_rows_without_a_direction(block, device):
    images = drawn(2, 45, 4, device=device).sign()
    images[0, 3] = images[0, 44] = images[1] = 0
    expected = select._dense(images, 45)
    found = kernels.farthest_point(images, 45, block)
    assert torch.equal(found, expected)
    assert found[0, -2:].tolist() == [3, 44]
    assert found[1].tolist() == list(range(45))
    expected = select._least_sum(images[0], 45, 44, 0)
    assert torch.equal(kernels.max_sum(images[0], 45, 44, block), expected)
    assert expected[-1] == 3


def test_a_row_of_zeros_is_nobodys_neighbour(device):
    cosines = torch.tensor([[1, -0.2, -0.5], [-0.2, 1, -0.6], [-0.5, -0.6, 1]])
    rows = torch.zeros(6, 3, device=device)
    rows[[1, 2, 4]] = torch.linalg.cholesky(cosines).to(device)
    for block in (4096, 2):
        assert kernels.farthest_point(rows[None], 1, block).tolist() == [[4]]


def test_strides(device):
    images = drawn(2, 30, 90, device=device)[:, ::2, 1::3]
    assert not images.is_contiguous()
    assert torch.equal(kernels.farthest_point(images, 5), select._dense(images, 5))
    halves = images.bfloat16().mT.contiguous().mT
    assert not halves.is_contiguous()
    assert torch.equal(kernels.farthest_point(halves, 5), select._dense(halves, 5))


def test_the_public_ops_reach_the_kernels(device, monkeypatch):
    features = drawn(2, 2, 20, 6, device=device)
    expected = select.farthest_point(features, 4), select.max_sum(features[0, 0], 4, 1)
    monkeypatch.setenv("VLMCOMPRESS_OPS", "triton")
    calls = []
    for name in ("farthest_point", "max_sum"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *args, kernel=kernel: calls.append(len(args[0])) or kernel(*args)
        )
    assert torch.equal(select.farthest_point(features, 4), expected[0])
    assert torch.equal(select.max_sum(features[0, 0], 4, 1), expected[1])
    assert calls == [4, 20]
    # Beyond the memory for a matrix the whole device works on one row at a time.
    assert torch.equal(select.farthest_point(features, 4, max_bytes=4 * 400), expected[0])
    assert calls[2:] == [1, 1, 1, 1]
    select.farthest_point(features, 4, max_bytes=0), select.max_sum(features[0, 0], 4, 1)
    assert calls[6:] == [20]
    features[1, 0, 2, 2] = torch.nan
    with pytest.raises(VLMCompressError, match="1 of 80 rows"):
        select.farthest_point(features, 4)
    with pytest.raises(VLMCompressError, match="1 of 20 rows"):
        select.max_sum(features[1, 0], 4, 1)
