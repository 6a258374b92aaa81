"""Greedy suppression against a loop."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.ops.suppression import leaders


def by_hand(near, scores):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    found = []
    for i in order:
        if not any(near[j][i] for j in found):
            found.append(i)
    return [i in found for i in range(len(scores))]


@pytest.mark.parametrize("seed", range(10))
def test_by_definition(seed):
    draw = torch.Generator().manual_seed(seed)
    near = torch.rand(14, 14, generator=draw) < 0.2
    near = near | near.T
    scores = torch.randint(6, (14,), generator=draw).float()
    assert leaders(near, scores).tolist() == by_hand(near.tolist(), scores.tolist())


def test_who_was_suppressed_suppresses_nobody():
    """A chain: 0 suppresses 1, so that 2 leads, which suppresses 3."""
    near = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]).bool()
    assert leaders(near, torch.tensor([4.0, 3, 2, 1])).tolist() == [True, False, True, False]
    assert leaders(near, torch.tensor([1.0, 1, 1, 1])).tolist() == [True, False, True, False]
    assert leaders(near[:1, :1], torch.tensor([-torch.inf])).tolist() == [True]
