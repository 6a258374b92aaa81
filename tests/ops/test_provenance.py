"""Groups from the token that each token went into."""

import pytest
import torch

from vlmcompress.ops.groups import grouped


def test_hand_example():
    """3 and 0 into 3, 1 and 4 into 1, 5 into itself, 2 dropped."""
    made = torch.arange(6.0)[:, None]
    result = grouped(made, torch.tensor([3, 1, -1, 3, 1, 5]), 3, 5)
    assert result.groups() == [[0, 3], [1, 4], [5]]
    assert result.features[:, 0].tolist() == [3, 1, 5]
    assert result.anchors.tolist() == [0, 1, 5]


def test_nothing_kept_is_no_groups():
    result = grouped(torch.ones(3, 2), torch.full((3,), -1), 0, 0)
    assert result.groups() == []
    assert result.features.shape == (0, 2)
    assert result.offsets.tolist() == [0]


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_ordered_by_their_smallest_member(seed):
    draw = torch.Generator().manual_seed(seed)
    owners = torch.randint(9, (3,), generator=draw).unique()
    into = torch.cat([torch.tensor([-1]), owners])[
        torch.randint(len(owners) + 1, (9,), generator=draw)
    ]
    into[owners] = owners
    plain, made = into.tolist(), torch.arange(9.0)[:, None]
    groups = [[i for i in range(9) if plain[i] == owner] for owner in sorted(set(plain) - {-1})]
    groups.sort(key=min)
    result = grouped(made, into, len(groups), sum(map(len, groups)))
    assert result.groups() == groups
    assert result.features[:, 0].tolist() == [plain[group[0]] for group in groups]
