"""Mass over the graph of attention against the whole matrix, and by hand."""

from __future__ import annotations

import pytest
import torch
from attention_inputs import SCALING, Largest, pair

from vlmcompress.ops import propagation
from vlmcompress.ops.propagation import propagate


def test_it_carries_no_gradient():
    q, k = (x.requires_grad_() for x in pair(3, 7, 4))
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
    monkeypatch.setattr(propagation, "GRAPH_BYTES", 7 * 9 * 4 - 1)
    beyond = propagate(q, k, SCALING, mass, seen, steps=3, **options)
    assert torch.equal(beyond, expected)


def test_the_graph_of_one_head_is_held_at_a_time(monkeypatch):
    q, k = pair(2, 64, 3)
    with Largest() as largest:
        propagate(q, k, SCALING, torch.ones(64), steps=2, max_bytes=2**11)
    assert largest.values == 64 * 64
    monkeypatch.setattr(propagation, "GRAPH_BYTES", 0)
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
