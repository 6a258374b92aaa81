"""Chunk against its definition in Python floats."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain import CLIPS, clip, cosine, mean, ranked

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.chunk import Chunk
from vlmcompress.tokens import Grid, VisualTokens

GRIDS = [*CLIPS, Grid(1, 4, 5)]


def runs(shown, count=None, threshold=None):
    rows = shown.features.tolist()
    apart = {i: 1 - cosine(rows[i], rows[i - 1]) for i in range(1, len(rows))}
    borders = [i for i in apart if threshold is not None and apart[i] > threshold]
    if count is not None:
        borders = sorted(ranked(apart, apart)[: count - 1])
    starts = [0, *borders]
    return [list(range(a, b)) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]


def check(found, shown, expected):
    rows = shown.features.tolist()
    assert found.groups() == expected
    for feature, own in zip(found.features.tolist(), expected, strict=True):
        assert feature == pytest.approx(mean([rows[i] for i in own]), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_by_definition(grid, seed):
    shown = clip(grid, seed)
    for count in range(1, len(grid) + 1):
        check(Chunk().reduce(shown, count), shown, runs(shown, count))
    for threshold in (0, 0.3, 0.8, 1.2, 1.9):
        found = Chunk(threshold=threshold).reduce(shown, len(grid))
        check(found, shown, runs(shown, threshold=threshold))


def test_hand_example():
    """Steps of 10, 80, 10 and 100 degrees: the borders are before tokens 2 and 4."""
    angles = torch.tensor([0.0, 10, 90, 100, 200]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1)
    shown = VisualTokens(features, Grid(1, 1, 5))
    assert Chunk().reduce(shown, 3).groups() == [[0, 1], [2, 3], [4]]
    assert Chunk().reduce(shown, 2).groups() == [[0, 1, 2, 3], [4]]
    assert Chunk(threshold=0.02).reduce(shown, 5).groups() == [[0, 1], [2, 3], [4]]
    assert Chunk(threshold=0.01).reduce(shown, 5).features is features
    made = Chunk().reduce(shown, 3).features
    assert torch.allclose(made[0], (features[0] + features[1]) / 2)


def test_copies_are_one_run_at_threshold_0():
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    shown = VisualTokens(features[torch.tensor([0, 0, 1, 2, 2, 2])], Grid(2, 1, 3))
    assert Chunk(threshold=0).reduce(shown, 6).groups() == [[0, 1], [2], [3, 4, 5]]


def test_tokens_weigh_by_the_patches_that_they_stand_for():
    features = torch.tensor([[1.0, 0], [1, 0.1], [0, 1]])
    shown = VisualTokens(features, Grid(1, 1, 3), sizes=torch.tensor([3.0, 1, 1]))
    found = Chunk().reduce(shown, 2)
    assert found.groups() == [[0, 1], [2]]
    assert torch.allclose(found.features[0], torch.tensor([1.0, 0.025]))
    plain = Chunk().reduce(replace(shown, sizes=None), 2)
    assert torch.allclose(plain.features[0], torch.tensor([1.0, 0.05]))


def test_its_ratio_is_checked():
    with pytest.raises(VLMCompressError, match="chunk: ratio must be above 0 and at most 1"):
        Chunk(ratio=0)
    assert Chunk(ratio=0.5).keep_count(Grid(1, 4, 4), None) == 8
