"""Grids and reductions."""

import torch

from vlmcompress.tokens import Grid, Reduction


def test_a_grid_counts_and_prints_its_tokens():
    assert len(Grid(1, 3, 4)) == 12
    assert str(Grid(1, 3, 4)) == "3x4"
    assert len(Grid(2, 3, 4)) == 24
    assert str(Grid(2, 3, 4)) == "2x3x4"


def test_a_reduction_is_ordered_by_the_smallest_member_of_each_group():
    features = torch.tensor([[1.0], [2.0], [3.0]])
    groups = [torch.tensor([5, 4]), torch.tensor([0, 7]), torch.tensor([2])]
    reduction = Reduction.from_groups(features, groups)
    assert reduction.groups() == [[0, 7], [2], [4, 5]]
    assert reduction.anchors.tolist() == [0, 2, 4]
    assert reduction.features[:, 0].tolist() == [2.0, 3.0, 1.0]


def test_a_reduction_may_be_empty():
    reduction = Reduction.from_groups(torch.zeros(0, 3), [])
    assert reduction.groups() == []
    assert reduction.anchors.tolist() == []


def test_groups_may_stand_elsewhere_than_at_their_smallest_member():
    members, offsets = torch.tensor([2, 0, 1, 3]), torch.tensor([0, 1, 4])
    one = Reduction(torch.zeros(2, 3), members, offsets, torch.tensor([2, 3]))
    plain = Reduction.identity(torch.zeros(2, 3))
    assert one.anchors.tolist() == [2, 3]
    assert Reduction.join([one, plain], [0, 10]).anchors.tolist() == [2, 3, 10, 11]
    assert Reduction.join([plain, plain], [0, 10]).places is None
    named = one.named(torch.tensor([5, 6, 8, 9]))
    assert (named.anchors.tolist(), named.groups()) == ([8, 9], [[8], [5, 6, 9]])
    assert plain.named(torch.tensor([4, 7])).anchors.tolist() == [4, 7]
