"""High frequencies of a grid against sums of sines in Python, and how much they change."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from vlmcompress.ops.spectrum import evolution, high_frequency
from vlmcompress.tokens import Grid


def filtered(values, h, w, cutoff):
    """Magnitudes [h * w] of one channel of one frame."""
    middle = h // 2, w // 2
    width = cutoff * max(1, min(middle))
    places = [(y, x) for y in range(h) for x in range(w)]

    def wave(u, v, y, x, sign):
        return cmath.exp(sign * 2j * math.pi * (u * y / h + v * x / w))

    spectrum = {}
    for u in range(-middle[0], h - middle[0]):
        for v in range(-middle[1], w - middle[1]):
            pairs = zip(places, values, strict=True)
            total = sum(value * wave(u, v, y, x, -1) for (y, x), value in pairs)
            spectrum[u, v] = total * (1 - math.exp(-(u * u + v * v) / (2 * width**2)))
    return [
        abs(sum(total * wave(u, v, y, x, 1) for (u, v), total in spectrum.items())) / (h * w)
        for y, x in places
    ]


@pytest.mark.parametrize("cutoff", [0.1, 0.8])
@pytest.mark.parametrize(
    "grid", [Grid(1, 1, 1), Grid(1, 4, 4), Grid(1, 3, 5), Grid(2, 5, 2), Grid(1, 1, 6)], ids=str
)
def test_by_definition(grid, cutoff):
    features = torch.randn(len(grid), 3, generator=torch.Generator().manual_seed(1))
    found = high_frequency(features, grid, cutoff)
    frame = grid.h * grid.w
    for t in range(grid.t):
        own = features[t * frame : (t + 1) * frame]
        each = [filtered(own[:, c].tolist(), grid.h, grid.w, cutoff) for c in range(3)]
        expected = [sum(channel) / 3 for channel in zip(*each, strict=True)]
        assert found[t * frame : (t + 1) * frame].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_plain_surface_has_none_and_a_chessboard_nothing_else():
    plain = torch.full((16, 2), 3.0)
    assert high_frequency(plain, Grid(1, 4, 4), 0.1).abs().max() < 1e-6
    rows, columns = torch.arange(4)[:, None], torch.arange(4)
    chessboard = 5 + (1.0 - 2 * ((rows + columns) % 2)).flatten()[:, None]
    assert torch.allclose(high_frequency(chessboard, Grid(1, 4, 4), 0.1), torch.ones(16))


def test_what_changed_more_than_usual_counts():
    """Changes 0, 0 and 1 / (1 + 1) in values of 1: z = -.577, -.577, 1.155."""
    before, after = torch.ones(3), torch.tensor([1.0, 1, 2])
    found = evolution(before, after, 0.5)
    expected = [1 / (1 + math.exp(z / 0.5)) for z in (0.57735, 0.57735, -1.1547)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    # A change above the sum counts as 1: 5 and 50 are the same.
    large = [evolution(before, torch.tensor([1.0, 1, x]), 0.5) for x in (5, 50)]
    assert torch.allclose(*large)
    assert torch.equal(evolution(before, before, 0.5), torch.full((3,), 0.5))
    assert torch.equal(evolution(before[:1], after[:1], 0.5), torch.full((1,), 0.5))
