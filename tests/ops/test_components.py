"""Which principal component each token belongs to, against a full decomposition."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.ops.components import component_of


def clear(groups, width=64, seed=0):
    """Tokens that share a direction with their group, of falling strength, and a little of their
    own, as the sigmoid's logits."""
    draw = torch.Generator().manual_seed(seed)
    ways = torch.linalg.qr(torch.randn(width, max(groups) + 1, generator=draw)).Q.T
    strength = torch.tensor([0.8 / 1.6**g for g in groups])[:, None]
    noise = 0.002 * torch.randn(len(groups), width, generator=draw)
    return torch.logit((0.5 + strength * ways[groups] + noise).clamp(0.01, 0.99))


@pytest.mark.parametrize("seed", range(5))
def test_tokens_of_one_direction_are_of_one_component(seed):
    groups = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, 1]
    features = clear(groups, seed=seed)
    found = component_of(features, 3)
    assert found.tolist() == groups
    # As in a full decomposition, whose first components are the same.
    signs = features.sigmoid()
    full = torch.linalg.svd((signs - signs.mean(1, keepdim=True)).T, full_matrices=False).Vh
    assert found.tolist() == full[:3].abs().argmax(0).tolist()


def test_no_more_components_than_there_can_be():
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for count in (0, 1, 3, 50):
        found = component_of(features, count)
        assert found.dtype == torch.int64
        assert 0 <= int(found.min()) <= int(found.max()) < max(1, min(count, 3))
    assert component_of(torch.ones(4, 6), 2).shape == (4,)


def test_the_same_again_and_no_seed_of_the_process():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first = component_of(features, 5)
    assert torch.equal(first, component_of(features, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first.unique()) > 2
