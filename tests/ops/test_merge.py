"""Matchings and groups against plain loops."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import merge as ops
from vlmcompress.ops.groups import Groups, reduce
from vlmcompress.ops.merge import (
    best_match,
    bipartite,
    energy,
    energy_matching,
    positive,
    ranked_bipartite,
    three_factor,
)

AIM = [(1, 0), (0.9, 0.1), (0, 1), (0, 2), (1, 1), (-1, 0), (2, 0.1), (1, 0.9)]
SEEDS = range(25)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(x):
    return torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1).tolist()


def best(weight, sources, destinations):
    """(weight, source, destination) of each source, the heaviest first, ties to lower indices."""
    pairs = [max((weight(a, b), -b) for b in destinations) for a in sources]
    found = [(w, a, -b) for (w, b), a in zip(pairs, sources, strict=True)]
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def grouped(pairs, n):
    """Groups of n tokens joined by pairs, by smallest member."""
    label = list(range(n))
    for a, b in pairs:
        label = [label[b] if one == label[a] else one for one in label]
    return sorted([i for i in range(n) if label[i] == one] for one in set(label))


def groups_of(leader):
    """The groups of one tile; a leader leads itself."""
    leader = leader.tolist()
    assert all(leader[one] == one for one in leader)
    return sorted([i for i, one in enumerate(leader) if one == head] for head in set(leader))


def sides(n, protected):
    places = range(protected, n)
    return [i for i in places if i % 2 == 0], [i for i in places if i % 2]


def plain_bipartite(x, remove, protected):
    c = cosines(x)
    found = best(lambda a, b: c[a][b], *sides(len(x), protected))
    return grouped([(a, b) for _, a, b in found[:remove]], len(x))


def plain_energy(x, margin):
    rows = cosines(x)
    return [
        sum(c - margin if c >= margin else math.exp(c - margin) - 1 for c in row) / len(row)
        for row in rows
    ]


def plain_energy_matching(x, remove, margin, protected):
    c, e = cosines(x), plain_energy(x[protected:], margin)
    order = sorted(range(len(e)), key=lambda i: -e[i])[: 2 * remove]
    order = [i + protected for i in order]
    found = best(lambda a, b: c[a][b], order[::2], order[1::2])
    return grouped([(a, b) for _, a, b in found], len(x))


def plain_three_factor(x, attention, sizes, remove, protected, taus, both_ways):
    c, n = cosines(x), len(x)
    a = [min(attention) / one for one in attention]
    z = [min(sizes) / one for one in sizes]

    def weight(i, j):
        near = ((c[i][j] + 1) / 2) ** (1 / taus[0])
        return near * (a[i] * a[j]) ** (1 / taus[1]) * (z[i] * z[j]) ** (1 / taus[2])

    even, odd = sides(n, protected)
    first = remove // 2 if both_ways else remove
    pairs = [(i, j) for _, i, j in best(weight, even, odd)[:first]]
    left = [i for i in even if i not in {i for i, _ in pairs}]
    if remove > first:
        pairs += [(i, j) for _, i, j in best(weight, odd, left)[: remove - first]]
    return grouped(pairs, n)


@pytest.mark.parametrize("protected", [0, 1, 2, 3])
def test_matchings_agree_with_plain_loops(protected):
    for seed in SEEDS:
        n = 2 + protected + seed % (9 - protected)
        x = randn(2, n, 3, seed=seed)
        attention, sizes = randn(2, n, seed=seed).exp(), 1 + torch.arange(2 * n).reshape(2, n) % 4
        for remove in range((n - protected) // 2 + 1):
            found = [
                bipartite(x, remove, protected),
                energy_matching(x, remove, 0.3, protected),
                *(
                    three_factor(
                        x,
                        attention,
                        sizes,
                        remove,
                        protected,
                        temperatures=(2.0, 3.0, 4.0),
                        both_ways=both,
                    )
                    for both in (True, False)
                ),
            ]
            for tile in range(2):
                one, a, z = x[tile], attention[tile].tolist(), sizes[tile].tolist()
                expected = [
                    plain_bipartite(one, remove, protected),
                    plain_energy_matching(one, remove, 0.3, protected),
                    *(
                        plain_three_factor(one, a, z, remove, protected, (2, 3, 4), both)
                        for both in (True, False)
                    ),
                ]
                assert [groups_of(leader[tile]) for leader in found] == expected
                assert all(len(groups) == n - remove for groups in expected)


@pytest.mark.parametrize("taus", [(2.0, 0.1, 4.0), (2.0, 4.0, 0.2), (1e-6, 1e-6, 1e-6)])
def test_low_temperatures_of_three_factors_pass_what_float32_holds(taus):
    """The tenth power of 10 000, for one."""
    for seed in SEEDS:
        x, attention = randn(1, 6, 3, seed=seed), 10 ** (-4 * torch.rand(1, 6))
        sizes = torch.randint(1, 100, (1, 6))
        leader = three_factor(x, attention, sizes, 1, temperatures=taus, both_ways=False)
        assert len(groups_of(leader[0])) == 5
        if min(taus) > 1e-6:  # there nearly every weight is none at all
            one = x[0], attention[0].tolist(), sizes[0].tolist()
            assert groups_of(leader[0]) == plain_three_factor(*one, 1, 0, taus, False)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_blocks_of_rows_give_what_one_matrix_gives(rows, monkeypatch):
    x, attention = randn(2, 13, 4), randn(2, 13).exp()
    sizes = torch.ones(2, 13)

    def all_of_them():
        return [
            bipartite(x, 5),
            energy_matching(x, 5, 0.4),
            three_factor(x, attention, sizes, 6),
            energy(x, 0.4),
        ]

    whole = all_of_them()
    monkeypatch.setattr(ops, "MATRIX_BYTES", 4 * 7 * rows)
    assert ops._rows(7) == rows
    for one, other in zip(whole, all_of_them(), strict=True):
        torch.testing.assert_close(one, other)


def test_energies_agree_with_plain_loops():
    for seed in SEEDS:
        x = randn(2, 7, 3, seed=seed)
        for margin in (0.0, 0.5, 0.9):
            expected = torch.tensor([plain_energy(tile, margin) for tile in x])
            torch.testing.assert_close(energy(x, margin), expected)


@pytest.mark.parametrize(
    ("remove", "order", "groups"),
    [
        (
            2,
            [(2, 0.1), (1, 0), (0.9, 0.1), (0, 1.5), (-1, 0), (1, 0.95)],
            [[0], [1], [2, 3], [4, 7], [5], [6]],
        ),
        (4, [(3.9 / 3, 0.2 / 3), (0, 1.5), (-1, 0), (1, 0.95)], [[0, 1, 6], [2, 3], [4, 7], [5]]),
        (9, [(3.9 / 3, 0.2 / 3), (0, 1.5), (-1, 0), (1, 0.95)], [[0, 1, 6], [2, 3], [4, 7], [5]]),
    ],
)
def test_the_hand_example_of_aim(remove, order, groups):
    x = torch.tensor(AIM)[None]
    leader, ranked = ranked_bipartite(x, remove)
    found = Groups.of(leader, ranked)
    means = found.mean(x, torch.ones(1, 8))
    torch.testing.assert_close(means[0], torch.tensor(order))
    made = found.reduction(means)
    assert made.groups() == groups
    in_raster, again = reduce(x, leader, torch.ones(1, 8))
    torch.testing.assert_close(made.features, in_raster[0])
    assert again.reduction(in_raster).groups() == groups


def test_the_hand_example_of_pitome():
    a, b = torch.eye(2)
    x = torch.stack([a, a, b, a, a, -a])[None]
    expected = torch.tensor([[0.1383, 0.1383, -0.2446, 0.1383, 0.1383, -0.5002]])
    torch.testing.assert_close(energy(x, 0.5), expected, atol=1e-4, rtol=0)
    # floor(6 - 6 * 0.67) = 1; of the four equal energies the first two merge.
    assert energy_matching(x, 1, 0.5).tolist() == [[1, 1, 2, 3, 4, 5]]
    assert groups_of(energy_matching(x, 2, 0.5)[0]) == [[0, 1, 3], [2], [4], [5]]


def test_the_hand_example_of_mctf():
    x = torch.tensor([[1.0, 2, 4, 10]])[..., None]
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    leader = three_factor(x, attention, torch.ones(1, 4), 1)
    assert groups_of(leader[0]) == [[0], [1], [2, 3]]
    means, _ = reduce(x, leader, attention)
    torch.testing.assert_close(means[0, :, 0], torch.tensor([1, 2, (2 * 4 + 10) / 3]))


def test_what_odd_tokens_hold_goes_with_them():
    # 0 joins 1 first; 1 then joins 2, the only even token that is left.
    x = torch.tensor([[(1, 0), (1, 0.1), (1, 0.3), (-1, 5)]])
    leader = three_factor(x, torch.ones(1, 4), torch.ones(1, 4), 2)
    assert groups_of(leader[0]) == [[0, 1, 2], [3]]


def test_attended_and_large_tokens_are_spared():
    x, ones = torch.ones(1, 4, 2), torch.ones(1, 4)
    spared = torch.tensor([[100.0, 1, 1, 1]])
    assert groups_of(three_factor(x, ones, ones, 1, both_ways=False)[0]) == [[0, 1], [2], [3]]
    for attention, sizes in ((spared, ones), (ones, spared)):
        leader = three_factor(x, attention, sizes, 1, both_ways=False)
        assert groups_of(leader[0]) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("attention", [0.0, 1e-30])
def test_tokens_that_nobody_attends_to_are_no_error(attention):
    x = randn(1, 8, 3)
    one = torch.full((1, 8), 0.1)
    one[0, 3] = attention
    leader = three_factor(x, one, torch.ones(1, 8), 3, both_ways=False)
    assert leader[0].bincount(minlength=8).tolist()[3] > 1
    assert len(groups_of(leader[0])) == 5
    # A token that nobody attends to at all is the most mergeable, not NaN.
    scaled = positive(torch.tensor([[0.0, 4, 1]]))[0].tolist()
    assert scaled[1:] == [1, 0.25]
    assert 0 < scaled[0] < 1e-11
    assert positive(torch.zeros(1, 2)).tolist() == [[1, 1]]
    alike = three_factor(x, torch.full((1, 8), attention), torch.ones(1, 8), 4)
    assert torch.equal(alike, three_factor(x, torch.ones(1, 8), torch.ones(1, 8), 4))


def test_closed_columns_are_found_by_nobody():
    x, y = torch.ones(1, 1, 1), torch.tensor([[[1.0], [-1], [-0.5]]])
    assert [one.item() for one in best_match(x, y)] == [1, 0]
    closed = torch.tensor([[True, False, False]])
    assert [one.item() for one in best_match(x, y, closed=closed)] == [-0.5, 2]


MATCHINGS = {
    "bipartite": bipartite,
    "energy_matching": lambda x, r, p=0: energy_matching(x, r, 0.9, p),
    "three_factor": lambda x, r, p=0: three_factor(
        x, torch.ones(x.shape[:2]), torch.ones(x.shape[:2]), r, p
    ),
}
on_matchings = pytest.mark.parametrize("match", list(MATCHINGS.values()), ids=list(MATCHINGS))


@on_matchings
def test_at_most_half_of_the_tokens_merge_and_protected_ones_never(match):
    for n in range(1, 9):
        for protected in range(min(n, 4) + 1):
            x = randn(1, n, 3)
            x[0, :protected] = 1
            x[0, protected:] = x[0, protected:] * 0.01 + 1
            groups = groups_of(match(x, 99, protected)[0])
            assert len(groups) == n - (n - protected) // 2
            assert groups[:protected] == [[i] for i in range(protected)]
            assert groups_of(match(x, 0, protected)[0]) == [[i] for i in range(n)]
            assert groups_of(match(x, -3, protected)[0]) == [[i] for i in range(n)]


@on_matchings
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_tokens_merge_by_lowest_index(match, value):
    groups = groups_of(match(torch.full((1, 7, 3), value), 2)[0])
    assert len(groups) == 5
    assert all(max(group) < 4 or len(group) == 1 for group in groups)


@on_matchings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_matches_like_its_float32_cast(match, dtype):
    x = randn(3, 31, 8).to(dtype)
    assert torch.equal(match(x, 12), match(x.float(), 12))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(match(x, 12), match(x.float(), 12))


@on_matchings
def test_a_batch_equals_its_members(match):
    x = randn(4, 20, 6)
    together = match(x, 7, 1)
    for tile in range(4):
        assert torch.equal(together[tile], match(x[tile : tile + 1], 7, 1)[0])
    assert not torch.equal(together[0], together[1])


@on_matchings
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_metrics_must_be_finite(match, bad):
    x = randn(1, 6, 2)
    x[0, 4, 0] = bad
    with pytest.raises(VLMCompressError, match="1 of 6 rows"):
        match(x, 2)
