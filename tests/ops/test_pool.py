"""Pooling windows against a loop over tokens."""

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.pool import window
from vlmcompress.tokens import Grid

GRIDS = [Grid(1, 4, 4), Grid(1, 12, 12), Grid(3, 5, 7), Grid(2, 1, 9), Grid(1, 1, 1)]


def inside(place, part, parts, size):
    """place in [floor(part*size/parts), ceil((part+1)*size/parts))."""
    return part * size < (place + 1) * parts and place * parts < (part + 1) * size


def windows(grid, a, b):
    return [
        [
            (t * grid.h + r) * grid.w + c
            for r in range(grid.h)
            for c in range(grid.w)
            if inside(r, i, a, grid.h) and inside(c, j, b, grid.w)
        ]
        for t in range(grid.t)
        for i in range(a)
        for j in range(b)
    ]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_windows_and_means(grid):
    features = torch.randn(len(grid), 6, generator=torch.Generator().manual_seed(0))
    for a in range(1, grid.h + 1):
        for b in range(1, grid.w + 1):
            made = window(features, grid, (a, b))
            groups = windows(grid, a, b)
            assert made.groups() == groups
            expected = torch.stack([features[group].mean(0) for group in groups])
            torch.testing.assert_close(made.features, expected)


def test_hand_examples():
    # M3: values 0..15 on 4x4 to 2x2.
    values = torch.arange(16.0)[:, None]
    assert window(values, Grid(1, 4, 4), (2, 2)).features[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    # 3x3 to 2x2: windows share their middle row and column.
    made = window(torch.arange(9.0)[:, None], Grid(1, 3, 3), (2, 2))
    assert made.features[:, 0].tolist() == [2, 3, 5, 6]
    assert made.groups() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_places_ascend_and_nothing_is_left_out(grid):
    for a in range(1, grid.h + 1):
        made = window(torch.zeros(len(grid), 1), grid, (a, max(1, grid.w // 2)))
        anchors = made.anchors.tolist()
        assert anchors == sorted(set(anchors))
        assert sorted({m for group in made.groups() for m in group}) == list(range(len(grid)))


def test_as_many_windows_as_tokens_changes_nothing():
    features = torch.randn(12, 5).bfloat16()
    made = window(features, Grid(1, 3, 4), (3, 4))
    assert torch.equal(made.features, features)
    assert made.groups() == [[i] for i in range(12)]


def test_half_precision_is_averaged_in_float32():
    features = torch.tensor([256.0, 1, 1, 1]).bfloat16()[:, None]
    made = window(features, Grid(1, 2, 2), (1, 1))
    assert made.features.dtype == torch.bfloat16
    # Summed in bfloat16, 256 + 1 would stay 256.
    assert made.features.item() == torch.tensor(259 / 4).bfloat16().item()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(VLMCompressError, match="9 features do not fit a grid of 2x4"):
        window(torch.zeros(9, 2), Grid(1, 2, 4), (1, 1))
    for shape in [(0, 1), (3, 1), (1, 5), (1, 0)]:
        with pytest.raises(VLMCompressError, match="windows on a grid of 2x4"):
            window(torch.zeros(8, 2), Grid(1, 2, 4), shape)
