"""Poolers that look at more than the grid: the question, or what is alike."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.expedit import Expedit
from vlmcompress.methods.pool import Pool
from vlmcompress.methods.ppllava import PPLLaVA
from vlmcompress.ops.cluster import soft_cluster
from vlmcompress.ops.pool import geometry, strided
from vlmcompress.tokens import Grid, VisualTokens


def image(grid, seed=0, **changes):
    g = torch.Generator().manual_seed(seed)
    given = {"features": torch.randn(len(grid), 8, generator=g), "grid": grid}
    given["relevance"] = torch.rand(len(grid), generator=g)
    return VisualTokens(**{**given, **changes})


# PPLLaVA


def test_the_hand_example_of_ppllava():
    z = torch.tensor([[1.0], [2], [3], [4]])

    def pooled(*shares, **options):
        relevance = torch.tensor(shares).log()
        tokens = VisualTokens(z, Grid(1, 2, 2), relevance=relevance)
        return PPLLaVA(scale=1.0, **options).reduce(tokens, 1).features.item()

    assert pooled(0.25, 0.25, 0.25, 0.25) == 2.5
    assert pooled(0.7, 0.1, 0.1, 0.1) == pytest.approx(1, abs=1e-6)
    assert pooled(0.26, 0.25, 0.25, 0.24) == pytest.approx(1.8068, abs=1e-4)
    # Without p the shares themselves are the weights.
    plain = pooled(0.7, 0.1, 0.1, 0.1, repair="window")
    assert plain == pytest.approx(0.7 + 0.2 + 0.3 + 0.4)


@pytest.mark.parametrize(
    ("grid", "budget", "shape"),
    [
        (Grid(32, 24, 24), None, (16, 8, 8)),
        (Grid(32, 27, 27), None, (16, 9, 9)),
        (Grid(1, 24, 24), None, (1, 8, 8)),
        (Grid(5, 7, 2), None, (2, 2, 1)),
        (Grid(1, 1, 1), None, (1, 1, 1)),
        (Grid(1, 24, 24), 576, (1, 24, 24)),
        (Grid(1, 24, 24), 64, (1, 8, 8)),
        (Grid(1, 24, 24), 100, (1, 8, 12)),
        # 11 x 13 would be windows of 4 and of 12 on 24.
        (Grid(1, 24, 24), 143, (1, 8, 12)),
        # 23 has no divisors but its own: 11 windows of 3, two apart.
        (Grid(1, 23, 23), 121, (1, 11, 11)),
        # Space before time ...
        (Grid(8, 24, 24), 512, (8, 8, 8)),
        (Grid(8, 24, 24), 8, (8, 1, 1)),
        # ... which is pooled where there is no token for every frame.
        (Grid(8, 24, 24), 5, (4, 1, 1)),
        (Grid(8, 24, 24), 1, (1, 1, 1)),
        # The default where it is larger.
        (Grid(15, 24, 24), 449, (7, 8, 8)),
    ],
)
def test_shapes_of_ppllava(grid, budget, shape):
    assert PPLLaVA().output(grid, budget) == Grid(*shape)


def test_sides_that_divide_are_preferred_up_to_twice_the_tokens():
    # 5 windows of 4, 3 apart, would be 25 tokens; 7 divides by nothing.
    assert PPLLaVA().fitted(Grid(1, 16, 16), 30) == Grid(1, 4, 4)
    assert PPLLaVA().fitted(Grid(1, 7, 7), 12) == Grid(1, 3, 3)


def weights(relevance, members, repair, theta=0.01, scale=100.0):
    """Weights of one window, a token at a time."""
    e = [(scale * c).exp() for c in relevance.double()]
    p = [one / sum(e) for one in e]
    score = {
        "none": lambda i: p[i] / theta,
        "count": lambda i: len(p) * p[i] / theta,
        "window": lambda i: scale * relevance[i].double(),
    }[repair]
    found = [score(i).exp() for i in members]
    return torch.stack([one / sum(found) for one in found]).float()


@pytest.mark.parametrize("repair", ["none", "window", "count"])
@pytest.mark.parametrize(("grid", "budget"), [(Grid(4, 6, 6), None), (Grid(3, 4, 5), 13)], ids=str)
def test_windows_are_weighted_by_relevance(repair, grid, budget):
    tokens = image(grid)
    tokens = replace(tokens, relevance=0.02 * tokens.relevance)
    count = PPLLaVA().keep_count(grid, budget)
    made = PPLLaVA(repair=repair).reduce(tokens, count)
    for k, members in enumerate(made.groups()):
        expected = weights(tokens.relevance, members, repair) @ tokens.features[members]
        torch.testing.assert_close(made.features[k], expected, atol=1e-4, rtol=1e-4)
    plain = PPLLaVA().reduce(replace(tokens, relevance=torch.ones(len(grid))), count)
    assert made.groups() == plain.groups()
    assert not torch.allclose(made.features, plain.features, atol=1e-3)


def test_the_default_drops_what_is_left_over_and_budgets_reach_the_end():
    tokens = image(Grid(5, 7, 7))
    default = PPLLaVA().reduce(tokens, PPLLaVA().keep_count(tokens.grid, None))
    axes = [geometry(n, kernel=k, stride=k) for n, k in ((5, 2), (7, 3), (7, 3))]
    assert default.groups() == strided(tokens.features, tokens.grid, axes).groups()
    assert max(chain(*default.groups())) < 4 * 49
    other = PPLLaVA().reduce(tokens, 5 * 9)
    axes = [geometry(n, output=o) for n, o in ((5, 5), (7, 3), (7, 3))]
    assert other.groups() == strided(tokens.features, tokens.grid, axes).groups()
    assert set(chain(*other.groups())) == set(range(5 * 49))


def test_without_a_text_tower_features_are_compared_with_the_mean_word():
    tokens = image(Grid(1, 6, 6), relevance=None, text=torch.randn(3, 8))
    cosine = torch.nn.functional.cosine_similarity(tokens.features, tokens.text.mean(0)[None])
    told = PPLLaVA().reduce(replace(tokens, relevance=cosine, text=None), 4)
    torch.testing.assert_close(PPLLaVA().reduce(tokens, 4).features, told.features)
    other = replace(tokens, text=tokens.text + 1)
    assert not torch.allclose(PPLLaVA().reduce(other, 4).features, told.features)


@pytest.mark.parametrize("text", [None, torch.zeros(0, 8)], ids=["no text", "empty text"])
def test_without_a_question_ppllava_says_so(text):
    with pytest.raises(VLMCompressError, match="ppllava needs a question"):
        PPLLaVA().reduce(image(Grid(1, 6, 6), relevance=None, text=text), 4)


def test_relevance_must_be_finite():
    tokens = image(Grid(1, 6, 6))
    tokens.relevance[7] = float("nan")
    with pytest.raises(VLMCompressError, match="relevance must be finite: 1 of 36"):
        PPLLaVA().reduce(tokens, 4)


# Expedit


def test_the_hand_example_of_expedit():
    features = torch.tensor([[0.0], [0], [10], [10]])
    made = Expedit(temperature=1.0).reduce(VisualTokens(features, Grid(1, 1, 4)), 2)
    torch.testing.assert_close(made.features, torch.tensor([[0.0], [10.0]]))
    assert made.groups() == [[0, 1], [2, 3]]


def test_expedit_clusters_every_frame_by_itself():
    tokens = image(Grid(3, 4, 6))
    options = {"temperature": 0.5, "iterations": 3, "window": 3}
    made = Expedit(**options).reduce(tokens, 18)
    for t in range(3):
        frame = tokens.features[24 * t : 24 * (t + 1)]
        centres, label = soft_cluster(frame[None], (4, 6), (2, 3), **options)
        groups = [[24 * t + int(i) for i in (label[0] == k).nonzero()[:, 0]] for k in range(6)]
        order = sorted(range(6), key=lambda k: groups[k][0])
        assert made.groups()[6 * t : 6 * t + 6] == [groups[k] for k in order]
        torch.testing.assert_close(made.features[6 * t : 6 * t + 6], centres[0, order])
    assert sorted(chain(*made.groups())) == list(range(72))
    pooled = Pool().reduce(tokens, 18)
    still = Expedit(iterations=0).reduce(tokens, 18)
    torch.testing.assert_close(still.features.sort(0).values, pooled.features.sort(0).values)
    assert not torch.allclose(made.features, still.features, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_features_still_give_every_cell_a_place(value):
    made = Expedit().reduce(image(Grid(2, 4, 4), features=torch.full((32, 8), value)), 8)
    assert [group[0] for group in made.groups()] == [0, 2, 8, 10, 16, 18, 24, 26]
    torch.testing.assert_close(made.features, torch.full((8, 8), value))
