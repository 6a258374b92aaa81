"""Density peaks, and what they absorb, against loops over Python floats."""

import math

import pytest
import torch
from plain import cosine

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.density import absorb, density_peaks, distinctive


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def peaks(rows, neighbours):
    """rho * delta of DPC-kNN, by definition."""
    everyone = range(len(rows))
    apart = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    rho = []
    for i in everyone:
        nearest = sorted(apart[i])[:neighbours]
        rho.append(math.exp(-sum(d * d for d in nearest) / len(nearest)))
    scores = []
    for i in everyone:
        denser = [j for j in everyone if (rho[j], -j) > (rho[i], -i)]
        delta = min((apart[i][j] for j in denser), default=max(map(max, apart)))
        scores.append(rho[i] * delta)
    return scores


@pytest.mark.parametrize("neighbours", [1, 4, 20])
@pytest.mark.parametrize("tokens", [2, 3, 10])
def test_peaks_are_density_times_distance_to_a_denser_row(tokens, neighbours):
    for seed in range(5):
        rows = normal(tokens, 6, seed=seed) + 3
        expected = torch.tensor(peaks(rows.tolist(), neighbours))
        assert torch.allclose(density_peaks(rows, neighbours).exp(), expected, atol=1e-5)


def test_the_middles_of_two_clusters_are_the_peaks():
    """Two crosses: the middle of each is nearest to the others."""
    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    rows = torch.cat([cross, cross + 20])[torch.tensor([1, 0, 2, 3, 4, 6, 7, 8, 9, 5])]
    scores = density_peaks(rows)
    assert sorted(scores.topk(2).indices.tolist()) == [1, 9]


def test_a_duplicate_is_no_peak_and_of_duplicates_the_first_is():
    rows = normal(4, 3)[torch.tensor([0, 1, 0, 2, 1, 3])]
    scores = density_peaks(rows, 2)
    assert scores.isinf().tolist() == [False, False, True, False, True, False]
    # Wide rows, where a matrix product leaves some distance between duplicates.
    scores = density_peaks(normal(37, 999, seed=1).repeat(3, 1) + 5)
    assert int(scores.isinf().sum()) == 74
    assert not scores.isnan().any()


def test_rows_far_apart_do_not_underflow():
    """exp(-distance^2) of these is 0 in floats."""
    rows = 1000 * normal(8, 4)
    scores = density_peaks(rows)
    assert scores.isfinite().all()
    assert len(set(scores.tolist())) == 8


def test_a_single_row_and_equal_rows_are_ranked_without_nan():
    assert not density_peaks(torch.ones(1, 3)).isnan().any()
    assert not density_peaks(torch.ones(5, 3)).isnan().any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.6, 1.0])
def test_rows_go_into_the_most_similar_anchor(beta, seed):
    rows, anchors = normal(9, 4, seed=seed), [7, 2, 4]
    nearest, made = absorb(rows, torch.tensor(anchors), beta)
    plain = rows.tolist()

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    owner = [max(range(3), key=lambda a: cosine(row, plain[anchors[a]])) for row in plain]
    assert nearest.tolist() == owner
    for a, anchor in enumerate(anchors):
        members = [plain[i] for i in range(9) if owner[i] == a]
        weight = max(beta, 1 / (len(members) + 1))
        for d in range(4):
            mean = sum(member[d] for member in members) / len(members)
            expected = weight * plain[anchor][d] + (1 - weight) * mean
            assert made[a, d].item() == pytest.approx(expected, abs=1e-5)


def test_an_anchor_stays_its_own_even_where_another_is_alike():
    rows = torch.tensor([[1.0, 0], [2, 0], [0, 1]])
    nearest, made = absorb(rows, torch.tensor([0, 1]), 0.6)
    assert nearest.tolist() == [0, 1, 0]
    assert torch.allclose(made, torch.tensor([[0.6 + 0.2, 0.2], [2, 0]]))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_what_is_not_finite_is_one_clear_error(value):
    rows = normal(5, 4)
    rows[2, 3] = value
    with pytest.raises(VLMCompressError, match="need finite rows"):
        density_peaks(rows)
    with pytest.raises(VLMCompressError, match="must be finite"):
        absorb(rows, torch.tensor([0]), 0.5)


def test_rows_whose_distances_are_too_large_are_refused():
    rows = torch.zeros(3, 2)
    rows[0, 0], rows[1, 1] = 2e19, 2e19  # each squared is a number, their sum is none
    with pytest.raises(VLMCompressError, match="too large"):
        density_peaks(rows)


def distinct(rows, denser):
    likeness = [[cosine(a, b) for b in rows] for a in rows]
    density = [sum(line) for line in likeness]
    found = []
    for i, own in enumerate(density):
        other = [
            likeness[i][j]
            for j, value in enumerate(density)
            if (value > own + 1e-6 if denser else value < own - 1e-6)
        ]
        found.append(own * (1 - max(other, default=0)))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("denser", [False, True])
@pytest.mark.parametrize("block", [1, 10**6])
def test_distinctive_by_definition(seed, denser, block):
    rows = torch.randn(15, 4, generator=torch.Generator().manual_seed(seed))
    expected = distinct(rows.tolist(), denser)
    assert distinctive(rows, denser, max_bytes=block).tolist() == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(distinct(rows.tolist(), not denser), abs=1e-2)


def test_distinctive_hand_example():
    """Densities 1.4, 2.56, 2.76, 2.4, -1.4."""
    rows = torch.tensor([[1.0, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]])
    less = [2.8, 0.512, 0.1104, 2.4, -1.4]
    more = [0.28, 0.1024, 2.76, 0.48, -1.4]
    assert distinctive(rows).tolist() == pytest.approx(less, abs=1e-5)
    assert distinctive(rows, denser=True).tolist() == pytest.approx(more, abs=1e-5)


def test_distinctive_of_rows_that_are_all_alike():
    assert distinctive(torch.ones(4, 3)).tolist() == pytest.approx([4.0] * 4)
    assert distinctive(torch.zeros(4, 3)).tolist() == [0] * 4
