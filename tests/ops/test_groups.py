"""What groups become, against plain loops."""

from itertools import chain

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.groups import Groups, at_medians, grouped, halvings, reduce, segment_sum
from vlmcompress.ops.merge import bipartite, ranked_bipartite

SEEDS = range(25)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_groups(leader):
    """Members by smallest member."""
    leader = leader.tolist()
    return sorted([i for i, one in enumerate(leader) if one == head] for head in set(leader))


def test_means_and_sums_agree_with_plain_loops():
    for seed in SEEDS:
        x, weights = randn(2, 9, 3, seed=seed), randn(2, 9, seed=seed + 100).exp()
        leader = bipartite(x, seed % 5)
        means, groups = reduce(x, leader, weights)
        sums = groups.sum(weights)
        assert means.shape == (2, 9 - seed % 5, 3)
        for tile in range(2):
            for k, members in enumerate(plain_groups(leader[tile])):
                w = weights[tile, members]
                expected = (w[:, None] * x[tile, members]).sum(0) / w.sum()
                torch.testing.assert_close(means[tile, k], expected)
                torch.testing.assert_close(sums[tile, k], w.sum())
                assert groups.slot[tile, members].tolist() == [k] * len(members)
                if len(members) == 1:
                    assert torch.equal(means[tile, k], x[tile, members[0]])


def test_rounds_compose_to_the_groups_of_all_tiles():
    x = randn(3, 11, 4)
    first = Groups.of(bipartite(x, 4))
    middle = first.mean(x, torch.ones(3, 11))
    leader, order = ranked_bipartite(middle, 3)
    second = Groups.of(leader, order)
    made = first.then(second).reduction(second.mean(middle, first.sum(torch.ones(3, 11))))
    assert len(made.groups()) == 12
    assert sorted(chain(*made.groups())) == list(range(33))
    for k, members in enumerate(made.groups()):
        assert len({i // 11 for i in members}) == 1
        torch.testing.assert_close(made.features[k], x.flatten(0, 1)[members].mean(0))
    anchors = made.anchors.tolist()
    assert anchors == sorted(anchors)
    assert max(map(len, made.groups())) > 2


def test_means_are_given_in_the_dtype_of_the_features():
    x = torch.tensor([[256.0, 1, 1, 1]]).bfloat16()[..., None]
    means, _ = reduce(x, torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
    # Summed in bfloat16, 256 + 1 would stay 256.
    assert means.item() == torch.tensor(259 / 4).bfloat16().item()


def test_tiles_with_different_numbers_of_groups_are_refused():
    with pytest.raises(VLMCompressError, match="same number of tokens, got 1 to 2"):
        Groups.of(torch.tensor([[0, 0], [0, 1]]))


def test_rounds_halve_until_the_rest_is_less():
    assert halvings(196, 49) == [98, 49]
    assert halvings(196, 4) == [98, 49, 25, 13, 7, 4]
    assert halvings(98, 74) == [74]
    assert halvings(576, 252) == [288, 252]
    assert halvings(576, 72) == [288, 144, 72]
    assert halvings(5, 5) == halvings(1, 0) == []
    assert halvings(7, 1) == [4, 2, 1]


def test_with_a_known_count_nothing_waits_for_the_device():
    """Tensors on "meta" have no data: whoever asks for some fails."""
    leader, x = torch.zeros(2, 9, dtype=torch.long, device="meta"), torch.zeros(2, 9, 5).to("meta")
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        Groups.of(leader)
    for groups in (Groups.of(leader, count=4), Groups.of(leader, leader[:, :4])):
        means = groups.mean(x, x[..., 0])
        assert means.shape == (2, 4, 5)
        assert groups.sum(x[..., 0]).shape == (2, 4)
        assert groups.reduction(means).members.shape == (18,)


def test_a_known_count_changes_nothing():
    x = randn(2, 9, 3)
    leader = bipartite(x, 4)
    assert torch.equal(Groups.of(leader, count=5).slot, Groups.of(leader).slot)
    assert Groups.of(leader).count == 5


def test_sums_of_segments_in_float32():
    values = torch.tensor([[256.0], [1], [1], [1], [5]]).bfloat16()
    members, offsets = torch.tensor([0, 1, 2, 3, 0, 4]), torch.tensor([0, 4, 4, 6])
    assert segment_sum(values, members, offsets).flatten().tolist() == [259, 0, 261]
    weights = torch.tensor([1, 0.5, 0.5, 1, 2, 3])
    weighted = segment_sum(values, members, offsets, weights)
    assert weighted.flatten().tolist() == [258, 0, 527]
    assert segment_sum(values, members[:0], offsets[:1]).shape == (0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_groups_at_the_lower_median_of_their_members(seed):
    into = torch.randint(4, (13,), generator=torch.Generator().manual_seed(seed)) * 3
    features = randn(13, 2, seed=seed)
    found = grouped(features, into, len(into.unique()), 13)
    moved = at_medians(found)
    expected = sorted(
        (group[(len(group) - 1) // 2], group, row)
        for group, row in zip(found.groups(), found.features.tolist(), strict=True)
    )
    assert moved.anchors.tolist() == [place for place, _, _ in expected]
    assert moved.groups() == [group for _, group, _ in expected]
    assert moved.features.tolist() == [row for _, _, row in expected]
    assert moved.anchors.tolist() != found.anchors.tolist()


def test_hand_example_of_a_median():
    """Of 4, 7, 9 and 12 the second; the group of 5 alone is then the first."""
    into = torch.full((13,), -1)
    into[[4, 7, 9, 12]], into[5] = 4, 5
    found = at_medians(grouped(torch.arange(13.0)[:, None], into, 2, 5))
    assert found.anchors.tolist() == [5, 7]
    assert found.groups() == [[5], [4, 7, 9, 12]]
    assert found.features.flatten().tolist() == [5, 4]
