"""Token-level correlation: tiles that repeat themselves keep fewer tokens."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.token_correlation import TokenCorrelation
from vlmcompress.tokens import Grid, VisualTokens

E = torch.eye(4)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(keys, early=None, late=None, parts=(), received=False):
    count = len(keys)
    early = torch.as_tensor(range(count) if early is None else early, dtype=torch.float32)
    late = early if late is None else torch.as_tensor(late, dtype=torch.float32)
    name = "encoder_attention" if received else "layer_cls_attention"
    noise = random(count, keys.shape[1], seed=9)
    grid = Grid(1, 1, count) if len(parts) != 1 else parts[0]
    return VisualTokens(
        random(count, 3), grid, layer_keys={0: noise, 2: keys, 4: noise}, parts=parts,
        **{name: {0: early, 2: noise[:, 0], 4: late}},
    )  # fmt: skip


def test_the_hand_example():
    """methods-b section 8 (6): three of four alike, of which the first is spared."""
    keys = E[[0, 0, 0, 1]]
    method = TokenCorrelation(share=0.25)
    assert method.density(keys) == 0.5
    assert method.select(image(keys, [1, 2, 3, 4]), 4).tolist() == [2, 3]
    assert method.select(image(keys, [4, 3, 2, 1]), 4).tolist() == [0, 1]


def brute_density(keys: torch.Tensor, threshold: float, share: float) -> float:
    count = len(keys)
    alike = [
        [
            j
            for j in range(count)
            if j != i and torch.cosine_similarity(keys[i], keys[j], dim=0) > threshold
        ]
        for i in range(count)
    ]
    redundant = [i for i in range(count) if len(alike[i]) >= share * count]
    counted = [i for i in redundant if any(j < i and j in redundant for j in alike[i])]
    return 1 - len(counted) / count


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_density_is_that_of_brute_force(count, seed):
    keys = random(count, 2, seed=seed)
    for threshold, share in ((0.9, 0.05), (0.3, 0.4), (-1, 0), (1, 0)):
        method = TokenCorrelation(threshold=threshold, share=share)
        assert method.density(keys) == pytest.approx(brute_density(keys, threshold, share))
        assert method.density(keys) > 0


def test_a_budget_is_shared_out_by_density():
    """Densities 1/4 and 1 of 4 tokens each: 1 and 4 of 5, so 3 tokens are 1 and 2."""
    keys = torch.cat([E[[0, 0, 0, 0]], E])
    tokens = image(keys, range(8), parts=(Grid(1, 2, 2), Grid(1, 1, 4)))
    assert TokenCorrelation().select(tokens, 3).tolist() == [3, 6, 7]
    assert TokenCorrelation().select(tokens, 5).tolist() == [3, 4, 5, 6, 7]
    assert TokenCorrelation().select(tokens, 7).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert TokenCorrelation().select(tokens, 8).tolist() == [3, 4, 5, 6, 7]
    assert TokenCorrelation().select(tokens, 0).tolist() == []


def test_every_frame_of_a_clip_is_a_tile():
    keys = torch.cat([E[[0, 0, 0, 0]], E])
    tokens = image(keys, range(8), parts=(Grid(2, 2, 2),))
    assert TokenCorrelation().select(tokens, 8).tolist() == [3, 4, 5, 6, 7]
    alone = VisualTokens(**{**vars(tokens), "parts": ()})
    assert TokenCorrelation().select(alone, 8).tolist() == [3, 4, 5, 6, 7]
    # As one tile it would be half redundant: the fifth key repeats the first.
    flat = VisualTokens(**{**vars(tokens), "parts": (Grid(1, 2, 4),)})
    assert TokenCorrelation().select(flat, 8).tolist() == [4, 5, 6, 7]


def test_a_high_rank_in_one_of_the_layers_is_enough():
    tokens = image(E, early=[9, 1, 2, 3], late=[0, 0.1, 7, 0.2])
    assert TokenCorrelation().select(tokens, 2).tolist() == [0, 2]
    # Of equal ranks, the first.
    assert TokenCorrelation().select(tokens, 3).tolist() == [0, 2, 3]
    assert TokenCorrelation().select(image(E, [1, 1, 1, 1], [1, 1, 1, 1]), 2).tolist() == [0, 1]


def test_attention_received_stands_for_cls_where_there_is_none():
    seen = {"early": [9, 1, 2, 3], "late": [0, 0.1, 7, 0.2]}
    assert TokenCorrelation().select(image(E, **seen, received=True), 2).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("depth", "whole", "layers"),
    [
        (23, None, [3, 11, 22]),
        (8, None, [3, 4, 7]),
        (4, None, [2, 3]),
        (2, None, [0, 1]),
        (1, None, [0]),
        (32, [7, 15, 23, 31], [7, 15, 31]),
        (32, [20, 31], [20, 31]),
        (3, [1], [1]),
    ],
    ids=str,
)
def test_layers_are_an_early_one_half_way_and_the_last(depth, whole, layers):
    whole = list(range(depth)) if whole is None else whole
    assert TokenCorrelation().encoder_layers(depth, whole) == layers


@pytest.mark.parametrize("count", range(8))
def test_exactly_count_indices_ascending_and_unique(count):
    for keys in (random(9, 4), torch.ones(9, 4), torch.zeros(9, 4)):
        tokens = image(keys, random(9, seed=3), random(9, seed=4), (Grid(1, 2, 3), Grid(1, 3, 1)))
        found = TokenCorrelation().select(tokens, count)
        assert found.dtype == torch.int64
        assert len(found) == count
        assert found.tolist() == sorted(set(found.tolist()))


def test_half_precision_gives_the_picks_of_its_float32_cast():
    keys, early, late = random(40, 3).bfloat16(), random(40, seed=1), random(40, seed=2)
    parts = (Grid(1, 4, 5), Grid(1, 4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        found = TokenCorrelation(threshold=0.8).select(image(keys, early, late, parts), 40)
    cast = TokenCorrelation(threshold=0.8).select(image(keys.float(), early, late, parts), 40)
    assert torch.equal(found, cast)
    assert len(found) < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold must be from -1 to 1"),
        ({"share": -0.1}, r"share must be from 0 to 1"),
        ({"early": -1}, "early must be 0 or more"),
        ({"early": 0.5}, "early must be an integer"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(VLMCompressError, match=message):
        TokenCorrelation(**options)


def test_what_is_missing_or_no_number_is_refused():
    method, tokens = TokenCorrelation(), image(E)
    with pytest.raises(VLMCompressError, match="needs layer_keys, and layer_cls_attention or"):
        method.select(VisualTokens(tokens.features, tokens.grid), 2)
    with pytest.raises(VLMCompressError, match="keys must be finite"):
        method.select(image(E * torch.nan), 2)
    with pytest.raises(VLMCompressError, match="layer_cls_attention must be finite"):
        method.select(image(E, [1, 2, torch.inf, 3]), 2)
    with pytest.raises(VLMCompressError, match="features must be finite"):
        method.select(VisualTokens(**{**vars(tokens), "features": tokens.features * torch.inf}), 2)
