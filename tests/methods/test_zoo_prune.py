"""ZOO-Prune: sensitivity of the projector times distance."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.zoo_prune import ZooPrune
from vlmcompress.ops.projector import Body
from vlmcompress.ops.sensitivity import weighted_farthest_point
from vlmcompress.tokens import Grid, Projection, VisualTokens

PROBES = ["difference", "derivative", "expected"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(count=12, seed=0, slopes=None, dtype=torch.float32, **given):
    """Each token's projector is a GELU between two matrices; `slopes` scales what enters it."""
    first, last = random(8, 4, seed=1), random(6, 8, seed=2)
    inputs = 2 * random(count, 1, 4, seed=seed).to(dtype)

    body = Body(first, None, gelu)
    if slopes is not None:  # linear, and as steep as is said
        rows = torch.tensor(slopes, dtype=torch.float32)

        def body(x):
            return (x.flatten(1) * rows.repeat(len(x) // len(rows))[:, None]) @ first.T

    features = (body(inputs.float()) @ last.T).to(dtype)
    projection = Projection(inputs, body, last, lambda values: values)
    return VisualTokens(
        given.pop("features", features), Grid(1, 1, count), projection=projection, **given
    )


@pytest.mark.parametrize("probe", ["difference", "derivative"])
def test_the_hand_example(probe):
    features = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0], [0.7, 0.7]])
    tokens = image(5, slopes=[5, 4.9, 2, 1, 3], features=features)
    method = ZooPrune(probe=probe)
    assert method.pick(tokens, 4).tolist() == [0, 2, 4, 1]
    assert method.select(tokens, 4).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("probe", ["difference", "derivative"])
def test_a_projector_that_reacts_alike_everywhere_leaves_distance_alone(probe):
    tokens = image(9, slopes=[1.0] * 9)
    expected = weighted_farthest_point(tokens.features, torch.ones(9), 4)
    if probe != "difference":  # rounding of differences is far above that of derivatives
        assert torch.equal(ZooPrune(probe=probe).select(tokens, 4), expected)
    # Equal inputs give equal differences.
    same = image(9, slopes=[1.0] * 9, features=tokens.features)
    same.projection.inputs[:] = same.projection.inputs[0].clone()
    assert torch.equal(ZooPrune(probe=probe).select(same, 4), expected)


def test_sensitivity_changes_the_picks():
    tokens = image(30)
    found = ZooPrune().select(tokens, 8)
    assert not torch.equal(found, weighted_farthest_point(tokens.features, torch.ones(30), 8))
    assert torch.equal(found, ZooPrune(probe="derivative").select(tokens, 8))


def test_expected_is_what_ever_more_directions_come_to():
    tokens = image(60)
    many = ZooPrune(directions=4096).pick(tokens, 20).tolist()
    few = ZooPrune(directions=2).pick(tokens, 20).tolist()
    found = ZooPrune(probe="expected").pick(tokens, 20).tolist()
    assert len({*found} & {*many}) > len({*few} & {*many})
    # In four dimensions a root mean square is not quite the mean, as it is in a thousand.
    assert len({*found} & {*many}) >= 16


def test_values_of_projected_features_are_brought_to_the_tokens():
    tokens = image(6)
    turned = Projection(
        tokens.projection.inputs.flip(0),
        tokens.projection.body,
        tokens.projection.last,
        lambda values: values.flip(0),
    )
    mirrored = VisualTokens(tokens.features, tokens.grid, projection=turned)
    for count in range(7):
        assert torch.equal(ZooPrune().select(mirrored, count), ZooPrune().select(tokens, count))


def test_directions_come_from_the_seed_alone():
    tokens, few = image(40), {"directions": 1}
    first = ZooPrune(**few).pick(tokens, 20)
    state = torch.get_rng_state()
    assert torch.equal(ZooPrune(**few).pick(tokens, 20), first)
    assert torch.equal(torch.get_rng_state(), state)
    others = [ZooPrune(seed=seed, **few).pick(tokens, 20).tolist() for seed in (1, 2, 2**40)]
    assert any(other != first.tolist() for other in others)


@pytest.mark.parametrize("probe", PROBES)
def test_exactly_count_indices_ascending_and_unique(probe):
    for tokens in (image(1), image(7), image(7, features=torch.zeros(7, 3))):
        for count in range(len(tokens.grid) + 2):
            found = ZooPrune(probe=probe, directions=3).select(tokens, count)
            assert found.dtype == torch.int64
            assert len(found) == min(count, len(tokens.grid))
            assert found.tolist() == sorted(set(found.tolist()))


def test_half_precision_gives_the_picks_of_its_float32_cast():
    half = image(25, dtype=torch.bfloat16)
    whole = Projection(half.projection.inputs.float(), *list(vars(half.projection).values())[1:])
    cast = VisualTokens(half.features.float(), half.grid, projection=whole)
    assert torch.equal(ZooPrune().select(half, 9), ZooPrune().select(cast, 9))


def test_the_default_is_a_share():
    assert ZooPrune().keep_count(Grid(1, 24, 24), None) == 64
    assert ZooPrune().keep_count(Grid(1, 1, 3), None) == 1
    assert ZooPrune(ratio=0.3334).keep_count(Grid(1, 24, 24), None) == 192
    assert ZooPrune().keep_count(Grid(1, 24, 24), 99.6) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio must be above 0 and at most 1, got 0"),
        ({"directions": 0}, "directions must be above 0, got 0"),
        ({"step": 0.0}, "step must be above 0"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"probe": "svd"}, "probe must be one of 'difference'"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(VLMCompressError, match=message):
        ZooPrune(**options)


def test_what_is_missing_or_no_number_is_refused():
    tokens = image(4)
    with pytest.raises(VLMCompressError, match="zoo-prune needs the projection"):
        ZooPrune().select(VisualTokens(tokens.features, tokens.grid), 2)
    with pytest.raises(VLMCompressError, match="must be finite"):
        ZooPrune().select(image(4, features=tokens.features * torch.nan), 2)
    tokens.projection.inputs[1] = torch.inf
    with pytest.raises(VLMCompressError, match="finite numbers"):
        ZooPrune().select(tokens, 2)
