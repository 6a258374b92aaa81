"""Attention scores against the whole matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import score
from vlmcompress.ops.score import (
    attention_received,
    attention_received_packed,
    attention_rows,
    propagate,
)

SCALING = 0.5


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Queries and keys far enough apart that attention is not uniform."""
    g = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(*shape, generator=g) * 2).to(dtype) for _ in range(2))


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


class Largest(TorchDispatchMode):
    """Remembers the number of values of the largest float32 tensor that was made."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.values = max(self.values, out.numel())
        return out


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
    monkeypatch.setattr(score, "_CACHED_BYTES", 1)
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
    assert not propagate(q, k, SCALING, torch.ones(7)).requires_grad


def brute_propagate(q, k, mass, allowed, temperature):
    """[H, N] float64, entry by entry."""
    total = torch.zeros(len(q), k.shape[1], dtype=torch.float64)
    for head in range(len(q)):
        key = k[head // (len(q) // len(k))].double()
        for row in range(q.shape[1]):
            columns = allowed[row].nonzero()[:, 0].tolist()
            e = {
                j: (SCALING / temperature * (q[head, row].double() @ key[j])).exp() for j in columns
            }
            for j in columns:
                total[head, j] += mass[head, row].double() * e[j] / sum(e.values())
    return total.float()


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("max_bytes", [1, 700, 2**20])
def test_propagate_is_mass_times_the_attention_that_rows_may_give(temperature, max_bytes):
    q, _ = pair(4, 7, 3)
    _, k = pair(2, 9, 3, seed=1)
    allowed = torch.ones(7, 9, dtype=torch.bool).tril(2)
    allowed[3] = False  # padding attends to nothing
    mass = torch.rand(4, 7, generator=torch.Generator().manual_seed(2))
    passed = propagate(
        q,
        k,
        SCALING,
        mass,
        lambda start, stop: allowed[start:stop],
        temperature=temperature,
        max_bytes=max_bytes,
    )
    expected = brute_propagate(q, k, mass, allowed, temperature)
    torch.testing.assert_close(passed, expected, atol=1e-5, rtol=1e-4)
    kept = mass.sum(1) - mass[:, 3]
    torch.testing.assert_close(passed.sum(1), kept)
    assert (passed - propagate(q, k, SCALING, mass, temperature=temperature)).abs().max() > 0.1


def test_propagate_never_holds_the_matrix():
    q, k = pair(2, 64, 3)
    with Largest() as largest:
        propagate(q, k, SCALING, torch.ones(64), max_bytes=2**11)
    assert largest.values == 2 * 64 * 4


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("max_bytes", [1, 700, 2**20])
@pytest.mark.parametrize("kind", ["causal", "window", "padding", None])
def test_several_steps_are_one_after_the_other(kind, max_bytes, temperature, monkeypatch):
    """With keys of an earlier turn in front, which take mass and hand none on."""
    q, _ = pair(4, 7, 3)
    _, k = pair(2, 9, 3, seed=1)
    allowed = torch.ones(7, 9, dtype=torch.bool).tril(2)
    if kind == "window":
        allowed = allowed.triu(1)
    if kind == "padding":
        allowed[[3, 6]] = False
        allowed[:, 2] = False
    seen = None if kind is None else (lambda start, stop: allowed[start:stop])
    options = {"temperature": temperature, "max_bytes": max_bytes}
    mass = torch.rand(4, 7, generator=torch.Generator().manual_seed(2))
    expected = mass
    for _ in range(3):
        expected = propagate(q, k, SCALING, expected[:, -7:], seen, **options)
    found = propagate(q, k, SCALING, mass, seen, steps=3, **options)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    twice = propagate(q, k, SCALING, mass, seen, steps=2, **options)
    assert (found - twice).abs().max() > 0.01
    monkeypatch.setattr(score, "GRAPH_BYTES", 7 * 9 * 4 - 1)
    beyond = propagate(q, k, SCALING, mass, seen, steps=3, **options)
    assert torch.equal(beyond, expected)


def test_the_graph_of_one_head_is_held_at_a_time(monkeypatch):
    q, k = pair(2, 64, 3)
    with Largest() as largest:
        propagate(q, k, SCALING, torch.ones(64), steps=2, max_bytes=2**11)
    assert largest.values == 64 * 64
    monkeypatch.setattr(score, "GRAPH_BYTES", 0)
    with Largest() as largest:
        propagate(q, k, SCALING, torch.ones(64), steps=2, max_bytes=2**11)
    assert largest.values == 2 * 64 * 4


def test_power_iteration_on_the_uniform_causal_graph_of_three():
    """The hand example of AIM: early tokens soak up what text and image hand on."""
    nothing, causal = torch.zeros(1, 3, 2), torch.ones(3, 3, dtype=torch.bool).tril()
    mass, steps = torch.full((3,), 1 / 3), []
    for _ in range(5):
        mass = propagate(nothing, nothing, 1.0, mass, lambda a, b: causal[a:b], temperature=0.1)
        steps.append(mass.square().mean(0).sqrt())
    torch.testing.assert_close(steps[0], torch.tensor([0.6111, 0.2778, 0.1111]), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        steps[4], torch.tensor([0.97012, 0.02851, 0.00137]), atol=1e-5, rtol=0
    )
