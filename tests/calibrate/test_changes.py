"""Change points and where they lie: against plain loops, and by hand."""

import pytest
import torch

from vlmcompress.calibrate.changes import (
    attended_curve,
    change_point,
    dense_regions,
    histogram,
    locations,
)
from vlmcompress.errors import VLMCompressError


def cost(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def rising(layers, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(layers, generator=draw, dtype=torch.float64).square().cumsum(0).tolist()


@pytest.mark.parametrize("layers", [4, 5, 6, 9, 32])
def test_the_change_point_is_that_of_brute_force(layers):
    points = set()
    for seed in range(30):
        curve = rising(layers, seed)
        best = None
        for split in range(2, layers - 1):
            total = cost(curve[:split]) + cost(curve[split:])
            if best is None or total < best[0] - 1e-12:
                best = total, split
        points.add(best[1])
        assert change_point(curve) == best[1] - 1
    assert len(points) > 1 or layers == 4


def test_the_change_point_is_the_last_layer_of_the_left_segment():
    assert change_point([0, 0, 0, 1, 1, 1, 1, 1]) == 2
    assert change_point([0, 0, 0, 0, 0, 1, 1, 1]) == 4
    # Of equals the first; the first and the last layer alone are no segment.
    assert change_point([1, 1, 1, 1, 1, 1]) == 1
    assert change_point([0, 9, 9, 9, 9, 9]) == 1
    assert change_point([0, 0, 0, 0, 0, 9]) == 3


def test_a_curve_that_rises_evenly_changes_in_the_middle():
    assert change_point([float(layer) for layer in range(32)]) == 15


def test_a_decoder_that_is_too_shallow_is_refused():
    with pytest.raises(VLMCompressError, match="4 layers or more, got 3"):
        change_point([0, 1, 2])


@pytest.mark.parametrize(("tokens", "followed"), [(576, 58), (144, 14), (3, 1), (1, 1)])
def test_the_curve_follows_the_tenth_that_gets_most(tokens, followed):
    draw = torch.Generator().manual_seed(tokens)
    attention = torch.rand(6, tokens, generator=draw)
    totals = attention.sum(0).tolist()
    most = sorted(range(tokens), key=lambda v: -totals[v])[:followed]
    expected, running = [], 0.0
    for layer in attention.tolist():
        running += sum(layer[v] for v in most) / followed
        expected.append(running)
    assert attended_curve(attention).tolist() == pytest.approx(expected)


def test_points_are_counted_by_layer():
    assert histogram([1, 3, 3, 2, 3], 6) == [0, 1, 1, 3, 0, 0]


@pytest.mark.parametrize(
    ("counts", "regions", "cuts"),
    [
        ([0, 2, 98, 0, 0, 0], [(2, 2)], [1, 2]),
        ([0, 50, 50, 0, 0, 0], [(1, 2)], [0, 2]),
        # The mean of layers 1 to 9 is 10: two runs, and a layer below it between them.
        ([0, 3, 20, 20, 2, 15, 20, 10, 0, 0, 0, 0], [(2, 3), (5, 7)], [1, 3, 7]),
        # Of three runs the one with fewest points goes.
        ([0, 12, 0, 30, 0, 0, 40, 0, 0, 0, 0, 0], [(3, 3), (6, 6)], [2, 3, 6]),
    ],
)
def test_locations_enclose_the_dense_regions(counts, regions, cuts):
    assert dense_regions(counts) == regions
    assert locations(counts) == cuts


@pytest.mark.parametrize("layers", [4, 6, 7, 32])
def test_whatever_is_found_lies_inside_the_decoder(layers):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        points = torch.randint(1, layers - 2, (9,), generator=draw).tolist()
        found = locations(histogram(points, layers))
        assert found == sorted(set(found))
        assert found[0] >= 0
        assert found[-1] + 1 < layers
