"""FastVID against its definition in Python floats."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from plain import CLIPS, clip, cosine, dealt, mean, ranked

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.fastvid import FastVID
from vlmcompress.tokens import Grid, VisualTokens


def segments(shown, fewest, threshold):
    """Lists of frames."""
    grid, frame, rows = shown.grid, shown.grid.h * shown.grid.w, shown.features.tolist()
    means = [mean(rows[t * frame : (t + 1) * frame]) for t in range(grid.t)]
    alike = [cosine(a, b) for a, b in pairwise(means)]
    cuts = set(sorted(range(len(alike)), key=lambda t: (alike[t], t))[: fewest - 1])
    cuts |= {t for t, value in enumerate(alike) if value < threshold}
    found = [[0]]
    for t in range(1, grid.t):
        if t - 1 in cuts:
            found.append([])
        found[-1].append(t)
    return found


def peak_scores(rows):
    apart = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    rho = []
    for line in apart:
        nearest = sorted(line)[:4]
        rho.append(math.exp(-sum(d * d for d in nearest) / len(nearest)))
    scores = []
    for i in range(len(rows)):
        denser = [j for j in range(len(rows)) if (rho[j], -j) > (rho[i], -i)]
        scores.append(
            rho[i] * min((apart[i][j] for j in denser), default=max(max(line) for line in apart))
        )
    return scores


def spread(total, parts):
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def fastvid(shown, count, fewest=8, threshold=0.9, share=0.4, interval=4, beta=0.6):
    """{members: features}."""
    grid, rows = shown.grid, shown.features.tolist()
    frame, attention = grid.h * grid.w, shown.cls_attention.tolist()
    parts = segments(shown, fewest, threshold)
    hosts = [part[::-1][::interval][::-1] for part in parts]
    total = min(int(share * count), sum(map(len, hosts)) * frame)
    quotas = [total * len(part) / grid.t for part in parts]
    sizes = dealt(quotas, total, [len(host) * frame for host in hosts])
    merged = [0] * grid.t
    for host, size in zip(hosts, sizes, strict=True):
        for t, own in zip(reversed(host), spread(size, len(host)), strict=True):
            merged[t] = own
    room = [frame - own for own in merged]
    salient = dealt(spread(count - total, grid.t), count - total, room)
    made, left = {}, []
    for t in range(grid.t):
        places = range(t * frame, (t + 1) * frame)
        kept = ranked(places, attention)[: salient[t]]
        made |= {(i,): rows[i] for i in kept}
        left.append([i for i in places if i not in kept])
    for part in parts:
        anchors = []
        for t in part:
            score = dict(zip(left[t], peak_scores([rows[i] for i in left[t]]), strict=True))
            anchors += sorted(ranked(left[t], score)[: merged[t]])
        owner = {
            i: i if i in anchors else max(anchors, key=lambda a: cosine(rows[i], rows[a]))
            for t in part
            for i in left[t]
            if anchors
        }
        for anchor in anchors:
            own = tuple(i for i in owner if owner[i] == anchor)
            weight = max(beta, 1 / (len(own) + 1))
            middle = mean([rows[i] for i in own])
            pairs = zip(rows[anchor], middle, strict=True)
            made[own] = [weight * a + (1 - weight) * m for a, m in pairs]
    return made


def check(reduction, expected):
    assert [tuple(group) for group in reduction.groups()] == sorted(expected)
    for group, feature in zip(reduction.groups(), reduction.features.tolist(), strict=True):
        assert feature == pytest.approx(expected[tuple(group)], abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", [*CLIPS, Grid(9, 1, 2), Grid(6, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "options",
    [(), (1, -1.0), (2, -1.0, 0.6, 2), (3, 0.2, 1.0, 3, 0.3), (1, -1.0, 0.0)],
    ids=["defaults", "one segment", "pairs", "only merged", "only salient"],
)
def test_by_definition(grid, options, seed):
    shown = clip(grid, seed)
    names = ("segments", "border", "merged", "interval", "beta")
    method = FastVID(**dict(zip(names, options, strict=False)))
    for count in {0, 1, 2, 3, len(grid) // 2, len(grid) - 2, len(grid)} & {*range(len(grid) + 1)}:
        result = method.reduce(shown, count)
        assert len(result.features) == count
        check(result, fastvid(shown, count, *options))


def test_hand_example():
    """Two frames alike, then a different one: two segments, of which the last frames hold anchors.

    Of 5 tokens 2 are merged, one for each segment (quotas 1.33 and .67); of the other 3 each frame
    keeps the one with the most attention. The first segment merges tokens 0, 1, 3 and 4, all but
    the salient 2 and 5, into the densest of frame 1.
    """
    first = torch.tensor([[4.0, 0], [4, 0.2], [4, 8]])
    last = torch.tensor([[-4.0, 0], [-4, 0.2], [-4, -8]])
    attention = torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 0])
    shown = VisualTokens(torch.cat([first, first, last]), Grid(3, 1, 3), cls_attention=attention)
    method = FastVID(segments=1)
    result = method.reduce(shown, 5)
    assert result.groups() == [[0, 1, 3, 4], [2], [5], [6], [7, 8]]
    # Of two tokens the first counts as denser: anchor 3, .6 * (4, 0) + .4 * (4, .1).
    assert torch.allclose(result.features[0], torch.tensor([4, 0.04]))
    assert torch.allclose(result.features[4], torch.tensor([-4, 0.6 * 0.2 + 0.4 * -3.9]))
    assert torch.equal(result.features[[1, 2, 3]], shown.features[[2, 5, 6]])


def test_cuts_at_the_least_similar_transitions_and_below_the_threshold():
    angles = torch.tensor([0.0, 10, 50, 55, 65]).deg2rad()
    shown = VisualTokens(
        torch.stack([angles.cos(), angles.sin()], dim=-1),
        Grid(5, 1, 1),
        cls_attention=torch.ones(5),
    )

    def groups(**options):
        method = FastVID(merged=1.0, interval=9, **options)
        return method.reduce(shown, sum(1 for _ in segments(shown, *options.values()))).groups()

    # Cosines .985, .766, .996, .985.
    assert groups(segments=1, border=0.9) == [[0, 1], [2, 3, 4]]
    assert groups(segments=1, border=0.7) == [[0, 1, 2, 3, 4]]
    assert groups(segments=2, border=0.7) == [[0, 1], [2, 3, 4]]
    assert groups(segments=1, border=0.99) == [[0], [1], [2, 3], [4]]
    assert groups(segments=9, border=0.7) == [[0], [1], [2], [3], [4]]


def test_of_an_image_is_salient_tokens_and_merged_peaks():
    shown = clip(Grid(1, 5, 5), 4)
    result = FastVID().reduce(shown, 10)
    sizes = [len(group) for group in result.groups()]
    assert sum(sizes) == 25
    salient = set(ranked(range(25), shown.cls_attention.tolist())[:6])
    assert salient <= {group[0] for group in result.groups() if len(group) == 1}


def test_a_salient_token_keeps_its_bits_and_the_dtype_stays():
    shown = clip(Grid(4, 3, 3), 5)
    shown = replace(shown, features=shown.features.bfloat16())
    result = FastVID().reduce(shown, 12)
    assert result.features.dtype == torch.bfloat16
    merged = 0
    for group, feature in zip(result.groups(), result.features, strict=True):
        if len(group) == 1:
            assert torch.equal(feature, shown.features[group[0]])
        merged += len(group) > 1
    assert merged
    wide = FastVID().reduce(replace(shown, features=shown.features.float()), 12)
    assert wide.groups() == result.groups()


def test_counts():
    # 32 frames of 196 tokens: int(.1 * 196) of each.
    assert FastVID().keep_count(Grid(32, 14, 14), None) == 32 * 19
    assert FastVID().keep_count(Grid(2, 1, 3), None) == 1
    assert FastVID().keep_count(Grid(32, 14, 14), 1000) == 1000


def test_looks_at_attention_and_at_features():
    shown, other = clip(Grid(4, 4, 4)), clip(Grid(4, 4, 4), 1)
    found = [
        FastVID().reduce(replace(shown, **changes), 24).groups()
        for changes in (
            {},
            {"features": other.features},
            {"cls_attention": other.cls_attention},
        )
    ]
    assert found[0] != found[1]
    assert found[0] != found[2]
    received = {2: shown.cls_attention}
    bare = replace(shown, cls_attention=None, encoder_attention=received)
    assert FastVID().reduce(bare, 24).groups() == found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": -1}, "fastvid: ratio must be above 0 and at most 1, got -1"),
        ({"segments": 0}, "fastvid: segments must be 1 or more, got 0"),
        ({"interval": 0}, "fastvid: interval must be 1 or more, got 0"),
        ({"interval": 1.5}, "interval must be an integer, got 1.5"),
        ({"merged": 1.1}, "fastvid: merged must be from 0 to 1, got 1.1"),
        ({"beta": -0.1}, "fastvid: beta must be from 0 to 1, got -0.1"),
        ({"border": math.nan}, "fastvid: border must be from -1 to 1, got nan"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(VLMCompressError, match=message):
        FastVID(**options)
