"""VidCom2 against its definition in Python floats."""

import math
from dataclasses import replace

import pytest
import torch
from plain import CLIPS, clip, dealt, frames_of, mean, ranked

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.vidcom2 import VidCom2
from vlmcompress.tokens import Grid, VisualTokens


def vidcom2(shown, count, temperature=0.01, share=0.5):
    grid, frame = shown.grid, shown.grid.h * shown.grid.w
    columns = list(zip(*shown.features.tolist(), strict=True))
    spread = [sum((x - sum(c) / len(c)) ** 2 for x in c) / len(c) for c in columns]
    order = sorted(range(len(columns)), key=lambda c: (spread[c], c))
    steady = sorted(order[: max(1, int(len(columns) * share))])
    rows = [[row[c] for c in steady] for row in shown.features.tolist()]
    rows = [[x / math.hypot(*row) for x in row] for row in rows]

    def likeness(row, middle):
        apart = math.dist(row, middle) ** 2
        return sum(math.exp(-apart / (2 * 2.0**power)) for power in range(-3, 2))

    pieces = [rows[start : start + frame] for start in range(0, len(rows), frame)]
    in_clip = [likeness(row, mean(rows)) for row in rows]
    in_frame = [likeness(row, mean(piece)) for piece in pieces for row in piece]
    uniqueness = [-sum(in_clip[t * frame : (t + 1) * frame]) / frame for t in range(grid.t)]
    powers = [math.exp((u - max(uniqueness)) / temperature) for u in uniqueness]
    quotas = [count / grid.t * (1 + power / sum(powers) - 1 / grid.t) for power in powers]
    sizes = dealt(quotas, count, [frame] * grid.t, least=int(count >= grid.t))
    unlike = [-a - b for a, b in zip(in_clip, in_frame, strict=True)]
    return sorted(
        i
        for t in range(grid.t)
        for i in ranked(range(t * frame, (t + 1) * frame), unlike)[: sizes[t]]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grid", CLIPS, ids=str)
def test_by_definition(grid, seed):
    shown = clip(grid, seed)
    for count in range(len(grid) + 1):
        assert VidCom2().select(shown, count).tolist() == vidcom2(shown, count)
        even = VidCom2(temperature=5.0, channels=1.0).select(shown, count)
        assert even.tolist() == vidcom2(shown, count, 5.0, 1.0)


def test_hand_example():
    """Four frames of three tokens, the third unlike the others: all its tokens, and the odd ones.

    One token of each other frame points elsewhere than its frame does.
    """
    ordinary = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0.8, 0.6, 0]])
    foreign = torch.tensor([[0.0, 0, 1], [0, 0.6, 0.8], [0, -0.6, 0.8]])
    features = torch.cat([ordinary, ordinary, foreign, ordinary])
    shown = VisualTokens(features, Grid(4, 1, 3))
    method = VidCom2(channels=1.0)
    # 4 tokens: a share of 1 for the third frame, quotas .75, .75, 1.75, .75, one each at least.
    assert frames_of(method.select(shown, 4), shown.grid) == [0, 1, 2, 3]
    # 6 tokens: 1.125 each and 2.625.
    assert frames_of(method.select(shown, 6), shown.grid) == [0, 1, 2, 2, 2, 3]
    assert [i for i in method.select(shown, 6).tolist() if i not in (6, 7, 8)] == [2, 5, 11]


def test_gives_unique_frames_more_and_the_temperature_evens_it_out():
    shown = clip(Grid(4, 4, 4), 3)
    features = 0.2 * shown.features
    features[:48, 0] += 1
    features[48:, 1] += 1
    shown = replace(shown, features=features)
    per_frame = [
        torch.bincount(torch.tensor(frames_of(method.select(shown, 24), shown.grid)), minlength=4)
        for method in (VidCom2(channels=1.0), VidCom2(channels=1.0, temperature=100.0))
    ]
    assert per_frame[0].argmax() == 3
    assert per_frame[0][3] > per_frame[1][3]
    assert per_frame[1].tolist() == [6, 6, 6, 6]


def test_looks_at_steady_channels():
    """The loud channel alone would make the second token odd; without it the third is."""
    features = torch.tensor([[0.0, 1, 0.1], [9, 1, 0.1], [0, 1, 0.9], [0, 1, 0.1]])
    shown = VisualTokens(features, Grid(1, 2, 2))
    assert VidCom2(channels=0.7).select(shown, 1).tolist() == [2]
    assert VidCom2(channels=1.0).select(shown, 1).tolist() == [1]


def test_counts():
    assert VidCom2().keep_count(Grid(32, 14, 14), None) == 1568
    assert VidCom2(ratio=0.15).keep_count(Grid(1, 10, 10), None) == 15
    assert VidCom2().keep_count(Grid(1, 1, 1), None) == 1
    assert VidCom2().keep_count(Grid(2, 2, 2), 5) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 2}, "vidcom2: ratio must be above 0 and at most 1, got 2"),
        ({"channels": 0}, "vidcom2: channels must be above 0 and at most 1, got 0"),
        ({"temperature": 0}, "vidcom2: temperature must be 1e-06 or more, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(VLMCompressError, match=message):
        VidCom2(**options)
