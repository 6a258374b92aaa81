"""Attention scores against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from attention_inputs import SCALING, Largest, pair

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import attention_blocks
from vlmcompress.ops.score import attention_received, attention_received_packed, attention_rows


def brute(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[H, N, N] attention of one sequence, in float64, entry by entry."""
    heads, tokens, _ = q.shape
    q, k = q.double(), k.double()
    matrix = torch.zeros(heads, tokens, tokens, dtype=torch.float64)
    for head in range(heads):
        for row in range(tokens):
            e = torch.stack([(SCALING * (q[head, row] @ k[head, j])).exp() for j in range(tokens)])
            matrix[head, row] = e / e.sum()
    return matrix


def brute_received(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return brute(q, k).mean(dim=(0, 1)).float()


def test_by_hand_two_tokens():
    # Query 0 weighs the keys 3 : 1, query 1 weighs them 1 : 1.
    q, k = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[3.0], [1.0]]]).log()
    assert torch.allclose(attention_rows(q, k, 1.0), torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    assert torch.allclose(attention_received(q, k, 1.0), torch.tensor([0.625, 0.375]))


def test_rows_are_rows_of_the_whole_matrix():
    q, k = pair(3, 7, 4)
    assert (attention_rows(q[:, [2, 5]], k, SCALING) - brute(q, k)[:, [2, 5]]).abs().max() < 1e-6


def test_rows_give_no_weight_to_what_is_not_seen():
    q, k = pair(3, 7, 4)
    seen = torch.tensor([True, False, True, True, False, True, True])
    rows = attention_rows(q, k, SCALING, seen)
    assert rows[..., ~seen].eq(0).all()
    assert (attention_rows(q, k[:, seen], SCALING) - rows[..., seen]).abs().max() < 1e-6


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize("max_bytes", [1, 4 * 3 * 17 * 5, 2**20], ids=["row", "block", "whole"])
def test_received_is_the_column_mean_whatever_the_block(tokens, max_bytes):
    q, k = pair(3, tokens, 4)
    received = attention_received(q, k, SCALING, max_bytes=max_bytes)
    assert (received - brute_received(q, k)).abs().max() < 1e-6
    assert received.sum() == pytest.approx(1)


@pytest.mark.parametrize(("max_bytes", "values"), [(2**20, 2 * 64 * 64), (2**11, 2 * 64 * 4)])
def test_the_matrix_is_never_larger_than_the_block(max_bytes, values):
    q, k = pair(2, 64, 3)
    with Largest() as largest:
        attention_received(q, k, SCALING, max_bytes=max_bytes)
    assert largest.values == values


def test_received_is_not_uniform_and_not_that_of_the_transpose():
    q, k = pair(3, 17, 4)
    received = attention_received(q, k, SCALING)
    assert received.max() > 2 * received.min()
    assert (received - attention_received(k, q, SCALING)).abs().max() > 1e-2


def test_a_batch_equals_its_members():
    q, k = pair(2, 3, 11, 4)
    together = attention_received(q, k, SCALING)
    for mine, a, b in zip(together, q, k, strict=True):
        assert (mine - brute_received(a, b)).abs().max() < 1e-6


def test_padding_neither_gives_nor_receives():
    q, k = pair(2, 3, 9, 4)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, [1, 6, 8]] = False
    received = attention_received(q, k, SCALING, valid=valid, max_bytes=500)
    assert received[0, ~valid[0]].eq(0).all()
    alone = brute_received(q[0][:, valid[0]], k[0][:, valid[0]])
    assert (received[0, valid[0]] - alone).abs().max() < 1e-6
    assert (received[1] - brute_received(q[1], k[1])).abs().max() < 1e-6


def test_packed_sequences_do_not_see_each_other():
    q, k = pair(3, 20, 4)
    lengths = [4, 1, 6, 4, 5]
    received = attention_received_packed(q, k, SCALING, lengths)
    parts = zip(q.split(lengths, 1), k.split(lengths, 1), strict=True)
    expected = torch.cat([brute_received(a, b) for a, b in parts])
    assert (received - expected).abs().max() < 1e-6
    assert (received - brute_received(q, k)).abs().max() > 1e-2


def test_packed_sequences_must_fill_the_keys():
    q, k = pair(3, 20, 4)
    with pytest.raises(VLMCompressError, match="sequences of 19 tokens do not fit 20 keys"):
        attention_received_packed(q, k, SCALING, [10, 9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    q, k = pair(3, 17, 4, dtype=dtype)
    expected = brute_received(q, k)
    assert (attention_received(q, k, SCALING) - expected).abs().max() < 1e-6
    q, k = pair(3, 17, 4)
    with torch.autocast("cpu", torch.bfloat16):
        received = attention_received(q, k, SCALING)
    assert received.dtype == torch.float32
    assert (received - brute_received(q, k)).abs().max() < 1e-6


def test_strided_input_and_gradients_make_no_difference():
    q, k = pair(3, 4, 17)
    received = attention_received(
        q.transpose(1, 2).requires_grad_(), k.transpose(1, 2).requires_grad_(), SCALING
    )
    assert not received.requires_grad
    assert (received - brute_received(q.transpose(1, 2), k.transpose(1, 2))).abs().max() < 1e-6


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_neighbouring_query_heads_share_a_key_head(groups):
    q, k = pair(6, 5, 4)
    rows = attention_rows(q, k[:groups], SCALING)
    repeated = k[:groups].repeat_interleave(6 // groups, 0)
    torch.testing.assert_close(rows, brute(q, repeated).float())
    batch = attention_rows(torch.stack([q, k]), torch.stack([k, q])[:, :groups], SCALING)
    assert (batch[0] - rows).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_blocks_of_heads_make_no_difference(groups, rows, dtype, monkeypatch):
    q, k = pair(2, 6, 9, 4, dtype=dtype)
    q, k = q[:, :, :rows], k[:, :groups]
    whole = attention_rows(q, k, SCALING)
    assert whole.shape == (2, 6, rows, 9)
    monkeypatch.setattr(attention_blocks, "_CACHED_BYTES", 1)
    torch.testing.assert_close(attention_rows(q, k, SCALING), whole)
    for i, j in ((0, 0), (1, 5)) if rows else ():
        alone = attention_rows(q[i, j : j + 1], k[i, j * groups // 6][None], SCALING)
        torch.testing.assert_close(alone[0], whole[i, j])


def test_the_mean_is_over_heads():
    q, k = pair(2, 6, 5, 4)
    each = attention_rows(q, k, SCALING)
    torch.testing.assert_close(attention_rows(q, k, SCALING, mean=True), each.mean(1))
    assert (each - each.mean(1, keepdim=True)).abs().max() > 0.1


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_that_may_attend_to_nothing_is_nan(rows):
    q, k = pair(3, rows, 4)[0], pair(3, 7, 4)[1]
    seen = torch.ones(rows, 7, dtype=torch.bool)
    seen[0] = False
    found = attention_rows(q, k, SCALING, seen)
    assert found[:, 0].isnan().all()
    assert found[:, 1:].isfinite().all()


def test_keys_in_half_precision_are_copied_head_by_head():
    q, k = pair(8, 1, 64)[0], pair(8, 32768, 64, dtype=torch.bfloat16)[1]
    with Largest() as largest:
        attention_rows(q.bfloat16(), k, SCALING)
    assert largest.values == 32768 * 64


def test_scores_carry_no_gradient():
    q, k = (x.requires_grad_() for x in pair(3, 7, 4))
    assert not attention_rows(q, k, SCALING).requires_grad
