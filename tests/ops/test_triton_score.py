"""The kernels of attention rows and column means against their torch paths."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.ops import score
from vlmcompress.ops._triton import score as kernels

pytestmark = pytest.mark.pairs

DTYPES = [torch.float32, torch.bfloat16]
SCALING = 0.3


@pytest.fixture(autouse=True)
def _torch_path(monkeypatch, poisoned):
    monkeypatch.setenv("VLMCOMPRESS_OPS", "torch")


def drawn(*shape, dtype=torch.float32, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=g)).to(device, dtype)


def flags(*shape, device, share=0.7):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < share).to(device)


def close(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [False, True], ids=["each", "mean"])
@pytest.mark.parametrize(
    ("heads", "shared", "rows", "keys", "width"),
    [
        (1, 1, 1, 1, 1),
        (4, 2, 1, 130, 64),
        (6, 2, 7, 63, 40),
        (4, 1, 17, 16, 7),
        (2, 2, 36, 33, 16),
    ],
)
def test_rows(heads, shared, rows, keys, width, mean, dtype, device):
    """More than one block of rows and of keys, more than one split, and one of each."""
    q = drawn(heads, rows, width, dtype=dtype, device=device)
    k = drawn(shared, keys, width, dtype=dtype, seed=1, device=device)
    seen = flags(rows, keys, device=device)
    seen[:, 0] = True
    for some, block, programs in ((None, 16, 8), (seen[0], 32, 64), (seen, 32, 1), (seen, 16, 64)):
        expected = score.attention_rows(q, k, SCALING, some, mean=mean)
        found = kernels.attention_rows(
            q, k, SCALING, some, mean=mean, block=block, programs=programs
        )
        close(found, expected)
    if keys > 1 and rows > 1:
        assert (expected - score.attention_rows(q, k, SCALING, mean=mean)).abs().max() > 1e-2


@pytest.mark.parametrize("mean", [False, True], ids=["each", "mean"])
def test_rows_of_a_strided_batch(mean, device):
    q = drawn(3, 5, 4, 20, device=device).transpose(1, 2)
    k = drawn(3, 37, 2, 40, seed=1, device=device)[..., ::2].transpose(1, 2)
    seen = flags(37, 5, device=device).T
    expected = score.attention_rows(q, k, SCALING, seen, mean=mean)
    close(kernels.attention_rows(q, k, SCALING, seen, mean=mean, block=16), expected)


def test_a_row_that_sees_nothing_is_nan_and_alone_in_that(device):
    """Others see nothing in a whole split, or in the first block of one."""
    q, k = drawn(2, 3, 8, device=device), drawn(2, 70, 8, seed=1, device=device)
    seen = torch.ones(3, 70, dtype=torch.bool, device=device)
    seen[0], seen[1, :40], seen[2, 16:] = False, False, False
    found = kernels.attention_rows(q, k, SCALING, seen, mean=False, block=16, programs=8)
    assert found[:, 0].isnan().all()
    assert not found[:, 1:].isnan().any()
    assert found[:, 1, :40].eq(0).all()
    close(found, score.attention_rows(q, k, SCALING, seen))


def test_no_rows(device):
    q, k = drawn(4, 0, 8, device=device), drawn(2, 9, 8, device=device)
    for mean in (False, True):
        found = kernels.attention_rows(q, k, SCALING, None, mean=mean)
        close(found, score.attention_rows(q, k, SCALING, mean=mean))


def test_queries_and_keys_of_two_dtypes(device):
    q = drawn(4, 3, 8, dtype=torch.bfloat16, device=device)
    k = drawn(2, 20, 8, seed=1, device=device)
    close(
        kernels.attention_rows(q, k, SCALING, None, mean=False), score.attention_rows(q, k, SCALING)
    )


def test_large_logits_do_not_overflow(device):
    q, k = 40 * drawn(2, 3, 8, device=device), drawn(2, 40, 8, seed=1, device=device)
    found = kernels.attention_rows(q, k, 1.0, None, mean=False, block=16)
    torch.testing.assert_close(found, score.attention_rows(q, k, 1.0), atol=1e-4, rtol=1e-3)
    found = kernels.attention_received(q, k[:, :3], 1.0, [3], None, block=16).mean(0)
    expected = score.attention_received(q, k[:, :3], 1.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.rotating(axis="dtype", by="tokens", count=1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "width", "block"), [(1, 1, 16), (7, 40, 16), (63, 16, 16), (130, 20, 64)]
)
def test_received(tokens, width, block, dtype, device):
    q, k = (drawn(2, 2, tokens, width, dtype=dtype, seed=seed, device=device) for seed in range(2))
    valid = flags(2, tokens, device=device)
    valid[:, 0] = True
    for some in (None, valid):
        expected = score.attention_received(q, k, SCALING, valid=some)
        each = None if some is None else some.repeat_interleave(2, 0)
        found = kernels.attention_received(
            q.flatten(0, 1), k.flatten(0, 1), SCALING, [tokens], each, block=block
        )
        close(found.view(2, 2, tokens).mean(1), expected)


@pytest.mark.rotating(axis="dtype", by="lengths", count=1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "lengths",
    [[4, 40, 17, 1, 13], [16, 16, 32, 11], [1] * 75],
    ids=["any", "whole blocks", "single tokens"],
)
def test_received_in_packed_sequences(lengths, dtype, device):
    """Borders inside a block and on one, sequences of several blocks and of one token."""
    q, k = (drawn(2, 75, 20, dtype=dtype, seed=seed, device=device) for seed in range(2))
    expected = score.attention_received_packed(q, k, SCALING, lengths)
    close(kernels.attention_received(q, k, SCALING, lengths, None, block=16).mean(0), expected)
    assert (expected - score.attention_received(q, k, SCALING)).abs().max() > 1e-2


def test_received_of_strided_queries(device):
    q = drawn(75, 3, 20, device=device).transpose(0, 1)
    k = drawn(75, 3, 40, seed=1, device=device)[..., ::2].transpose(0, 1)
    found = kernels.attention_received(q, k, SCALING, [30, 45], None, block=16).mean(0)
    close(found, score.attention_received_packed(q, k, SCALING, [30, 45]))


@pytest.mark.parametrize("op", ["rows", "received", "packed"])
def test_the_public_ops_take_the_kernel_when_told_to(op, device, monkeypatch):
    q, k = (drawn(2, 3, 20, 8, seed=seed, device=device) for seed in range(2))
    valid = flags(2, 20, device=device) | (torch.arange(20, device=device) == 0)
    run = {
        "rows": lambda: score.attention_rows(q, k, SCALING, mean=True),
        "received": lambda: score.attention_received(q, k, SCALING, valid=valid),
        "packed": lambda: score.attention_received_packed(q[0], k[0], SCALING, [9, 11]),
    }[op]
    name = "attention_rows" if op == "rows" else "attention_received"
    kernel, calls = getattr(kernels, name), []
    monkeypatch.setattr(kernels, name, lambda *a, **k: calls.append(1) or kernel(*a, **k))
    expected = run()
    assert calls == []
    monkeypatch.setenv("VLMCOMPRESS_OPS", "triton")
    close(run(), expected)
    assert calls == [1]
