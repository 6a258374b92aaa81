"""Slopes of a function along directions, and picks by weight times distance."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.sensitivity import sensitivity, weighted_farthest_point

HAND = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0], [0.7, 0.7]])
"""methods-b section 4 (6)."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, LAST, MOVES = random(12, 6), random(5, 12, seed=1), random(3, 3, seed=2)
MOVES = MOVES / MOVES.norm(dim=-1, keepdim=True)
INPUTS = 3 * random(7, 2, 3, seed=3)


def body(x: torch.Tensor) -> torch.Tensor:
    """Two patches of three channels."""
    return gelu(layer_norm(x, (3,)).flatten(1) @ WEIGHT.T.to(x))


def by_hand(inputs: torch.Tensor, step: float) -> torch.Tensor:
    """Whole outputs subtracted, token by token, in float64."""
    values = []
    for row in inputs.double():
        norms = []
        for move in MOVES.double():
            ahead, behind = (
                body((row + sign * step * move)[None]) @ LAST.T.double() for sign in (1, -1)
            )
            norms.append((ahead - behind).norm() / (2 * step))
        values.append(sum(norms) / len(norms))
    return torch.stack(values).float()


@pytest.mark.parametrize("step", [0.5, 0.01])
def test_differences_are_those_of_whole_outputs(step):
    found = sensitivity(body, LAST, INPUTS, MOVES, step=step)
    assert torch.allclose(found, by_hand(INPUTS, step), rtol=1e-3)
    assert found.std() > 0.1


def test_a_large_step_is_no_derivative():
    large, small = by_hand(INPUTS, 3.0), by_hand(INPUTS, 1e-4)
    assert (large - small).abs().max() > 0.1
    assert torch.allclose(sensitivity(body, LAST, INPUTS, MOVES, step=3.0), large, rtol=1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_derivative_is_the_limit_of_differences(mode):
    with mode():
        found = sensitivity(body, LAST, INPUTS, MOVES, step=9.0, probe="derivative")
        assert torch.allclose(found, by_hand(INPUTS, 1e-6), rtol=1e-4)


@pytest.mark.parametrize("probe", ["difference", "derivative"])
def test_blocks_of_directions_change_nothing(probe, monkeypatch):
    whole = sensitivity(body, LAST, INPUTS, MOVES, step=0.1, probe=probe)
    monkeypatch.setattr("vlmcompress.ops.sensitivity._NUMBERS", 1)
    assert torch.allclose(sensitivity(body, LAST, INPUTS, MOVES, step=0.1, probe=probe), whole)


@pytest.mark.parametrize("probe", ["difference", "derivative"])
def test_half_precision_is_probed_in_float32(probe):
    half = INPUTS.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = sensitivity(body, LAST, half, MOVES, step=0.01, probe=probe)
    assert torch.equal(found, sensitivity(body, LAST, half.float(), MOVES, step=0.01, probe=probe))


def test_inputs_that_are_no_numbers_are_refused():
    broken = INPUTS.clone()
    broken[2, 0, 1] = torch.nan
    with pytest.raises(VLMCompressError, match="finite numbers: 1 of 7 are not"):
        sensitivity(body, LAST, broken, MOVES, step=0.1)


def test_the_hand_example_of_weight_times_distance():
    reaction = torch.tensor([5, 4.9, 2, 1, 3])
    weights = (reaction - 1) / 4
    assert weighted_farthest_point(HAND, weights, 4, order="picked").tolist() == [0, 2, 4, 1]
    assert weighted_farthest_point(HAND, weights, 4).tolist() == [0, 1, 2, 4]
    assert weighted_farthest_point(HAND, weights, 5, order="picked").tolist()[-1] == 3


def brute_force(features: torch.Tensor, weights: torch.Tensor, count: int) -> list[int]:
    picks = [max(range(len(features)), key=lambda i: (weights[i], -i))]
    while len(picks) < count:
        left = [i for i in range(len(features)) if i not in picks]

        def gain(i: int) -> float:
            cosines = [torch.cosine_similarity(features[i], features[j], dim=0) for j in picks]
            return float(weights[i] * max(0, 1 - max(cosines)))

        picks.append(max(left, key=lambda i: (round(gain(i), 6), -i)))
    return picks


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tokens", [1, 2, 5, 9])
def test_picks_are_those_of_brute_force(tokens, seed):
    features, weights = random(tokens, 4, seed=seed), random(tokens, seed=seed + 50).abs()
    for count in range(1, tokens + 1):
        found = weighted_farthest_point(features, weights, count, order="picked")
        assert found.tolist() == brute_force(features, weights, count)


def test_weights_matter_and_distances_matter():
    features, weights = random(30, 4), random(30, seed=1).abs()
    found = weighted_farthest_point(features, weights, 8).tolist()
    assert found != weighted_farthest_point(features, torch.ones(30), 8).tolist()
    assert found != weights.topk(8).indices.sort().values.tolist()


@pytest.mark.parametrize("count", [-1, 0, 1, 4, 9])
def test_equal_rows_are_picked_in_order_and_once(count):
    found = weighted_farthest_point(torch.ones(4, 3), torch.ones(4), count, order="picked")
    assert found.tolist() == list(range(max(1, min(count, 4))))


def test_a_repeated_row_is_no_less_than_one_without_weight():
    """Although its distance to itself comes out below 0."""
    rows = (random(16, seed=seed) for seed in range(100))
    units = (row / torch.linalg.vector_norm(row) for row in rows)
    row = next(unit for unit in units if unit @ unit > 1)
    features, weights = torch.stack([row, row, -row]), torch.tensor([1.0, 1, 0])
    assert weighted_farthest_point(features, weights, 2).tolist() == [0, 1]


def test_rows_of_zeros_and_no_numbers():
    features = torch.tensor([[1.0, 0], [0, 0], [-1, 0]])
    assert weighted_farthest_point(features, torch.ones(3), 2).tolist() == [0, 2]
    with pytest.raises(VLMCompressError, match="must be finite: 1 of 3 rows"):
        weighted_farthest_point(features * torch.tensor([[1], [1], [torch.inf]]), torch.ones(3), 2)
    with pytest.raises(VLMCompressError, match="at least one row"):
        weighted_farthest_point(torch.zeros(0, 2), torch.zeros(0), 1)
