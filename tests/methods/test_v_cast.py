"""V-CAST against its definition in Python floats."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from plain import CLIPS, clip, cosine, dealt, frames_of, mean, ranked

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.v_cast import VCast
from vlmcompress.tokens import Grid, VisualTokens


def v_cast(shown, count, temperature=0.7):
    grid, frame, rows = shown.grid, shown.grid.h * shown.grid.w, shown.features.tolist()
    frames = [rows[t * frame : (t + 1) * frame] for t in range(grid.t)]
    ways = [mean(own) for own in frames]
    ways = [[x / math.hypot(*way) for x in way] for way in ways]
    steps = [[b - a for a, b in zip(*two, strict=True)] for two in pairwise(ways)]
    bends = [1.0] * grid.t
    for t in range(1, grid.t - 1):
        bends[t] = 1 - cosine(steps[t - 1], steps[t])
    powers = [math.exp(bend / temperature) for bend in bends]
    least = int(count >= grid.t)
    quotas = [least + power / sum(powers) * (count - least * grid.t) for power in powers]
    sizes = dealt(quotas, count, [frame] * grid.t, least)
    kept = []
    for t, own in enumerate(frames):
        lengths = [math.hypot(*row) for row in own]
        low, high = min(lengths), max(lengths)
        score = {
            t * frame + i: 1 - cosine(row, ways[t]) + (length - low) / (high - low + 1e-6)
            for i, (row, length) in enumerate(zip(own, lengths, strict=True))
        }
        kept += ranked(score, score)[: sizes[t]]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grid", [*CLIPS, Grid(6, 2, 3)], ids=str)
def test_by_definition(grid, seed):
    shown = clip(grid, seed)
    for count in range(len(grid) + 1):
        assert VCast().select(shown, count).tolist() == v_cast(shown, count)
        sharp = VCast(temperature=0.1).select(shown, count).tolist()
        assert sharp == v_cast(shown, count, 0.1)


def test_hand_example():
    """Four frames of two tokens, whose means turn by 0, 90, 90 and 180 degrees on a circle.

    Steps go from 0 to 90, nowhere, then to 180. The second and third frame stand at a step that
    leads nowhere: all curvatures are 1, and 4 of 8 tokens are one of each frame.
    """
    one, other = torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    ways = torch.stack([one, other, other, -one])
    features = torch.stack([ways, 2 * ways], 1).flatten(0, 1)
    shown = VisualTokens(features, Grid(4, 1, 2))
    assert VCast().select(shown, 4).tolist() == [1, 3, 5, 7]  # the longer ones


def test_a_frame_where_the_clip_turns_back_gets_more():
    """0, 40, 80, 40, 0, 40 degrees: it turns at the third and the fifth frame, curvature 2 there
    but for the arc, and goes straight on at the second and fourth."""
    angles = torch.tensor([0.0, 40, 80, 40, 0, 40]).deg2rad()
    ways = torch.stack([angles.cos(), angles.sin()], 1)
    features = ways.repeat_interleave(8, 0) * torch.linspace(1, 2, 8).repeat(6)[:, None]
    kept = VCast().select(VisualTokens(features, Grid(6, 1, 8)), 18)
    counts = [frames_of(kept, Grid(6, 1, 8)).count(t) for t in range(6)]
    assert sum(counts) == 18
    assert counts[2] == counts[4] > counts[0] == counts[5] > counts[1] == counts[3] >= 1


def test_its_options_are_checked():
    with pytest.raises(VLMCompressError, match="v-cast: temperature must be 1e-06 or more"):
        VCast(temperature=0)
    assert VCast().keep_count(Grid(8, 4, 4), None) == 32
