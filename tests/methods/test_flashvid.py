"""FlashVID against its definition in Python floats, and by hand."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from plain import dealt, diverse, hangs, mean, ranked
from shown import Layer
from test_fastvid import segments, spread

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.flashvid_merge import FlashVIDMerge
from vlmcompress.methods.flashvid_prune import FlashVIDPrune
from vlmcompress.methods.shared.clip_segments import cuts
from vlmcompress.tokens import Grid, VisualTokens

GRIDS = [Grid(1, 3, 3), Grid(2, 1, 3), Grid(3, 2, 2), Grid(5, 1, 4), Grid(4, 2, 3), Grid(9, 1, 1)]


def clip(grid, seed=0, drift=0.6):
    """Frames that are like the one before, so that trees grow."""
    draw = torch.Generator().manual_seed(seed)
    frames = [torch.randn(grid.h * grid.w, 4, generator=draw)]
    for _ in range(grid.t - 1):
        frames.append(frames[-1] + drift * torch.randn(frames[-1].shape, generator=draw))
    attention = torch.rand(len(grid), generator=draw)
    return VisualTokens(torch.cat(frames), grid, encoder_attention={5: attention})


def clusters_of(rows, count):
    """Lists of places, by density peaks of the 7 nearest or as many as clusters."""
    apart = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    rho = []
    for line in apart:
        near = sorted(line)[: min(count, 7)]
        rho.append(-sum(d * d for d in near) / len(near))
    scores = []
    for i in range(len(rows)):
        denser = [apart[i][j] for j in range(len(rows)) if (rho[j], -j) > (rho[i], -i)]
        largest = max(map(max, apart))
        scores.append(math.exp(rho[i]) * min(denser, default=largest))
    centres = sorted(ranked(range(len(rows)), scores)[:count])
    found = {centre: [] for centre in centres}
    for i in range(len(rows)):
        own = i if i in centres else min(centres, key=lambda c: (apart[i][c], c))
        found[own].append(i)
    return list(found.values())


def flashvid(tokens, count, method):
    """{members: features}."""
    grid, rows = tokens.grid, tokens.features.tolist()
    size, attention = grid.h * grid.w, tokens.encoder_attention[5].tolist()
    frames = [rows[t * size : (t + 1) * size] for t in range(grid.t)]
    quotas, made = spread(count, grid.t), {}
    for part in segments(tokens, method.segments, method.threshold):
        event = mean([row for t in part for row in frames[t]])
        taken = {}
        for t in part:
            weights = attention[t * size : (t + 1) * size]
            if method.events:
                likeness = [
                    sum(x * y for x, y in zip(row, event, strict=True)) for row in frames[t]
                ]
                weights = [w * e for w, e in zip(weights, likeness, strict=True)]
            number = math.ceil(method.alpha * quotas[t] - 1e-9)
            taken[t] = diverse(frames[t], weights, number)
            made |= {(t * size + j,): frames[t][j] for j in taken[t]}
        free = [[j not in taken[t] for j in range(size)] for t in part]
        hang = hangs([frames[t] for t in part], free, method.theta, sum(quotas[t] for t in part))
        trees, direct = {}, {}
        for f, t in enumerate(part):
            for j in range(size):
                if free[f][j]:
                    token = f, j
                    direct[hang.get(token)] = direct.get(hang.get(token), 0) + 1
                    while token in hang:
                        token = hang[token]
                    trees.setdefault(token, []).append(t * size + j)
        left = [[j for j in range(size) if (f, j) in trees] for f in range(len(part))]
        total = sum(quotas[t] - len(taken[t]) for t in part)
        room = [len(places) for places in left]
        numbers = dealt([total * n / max(1, sum(room)) for n in room], total, room)
        for f, places in enumerate(left):
            values = []
            for j in places:
                own = [rows[i] for i in trees[f, j]]
                divisor = len(own) if method.average == "tree" else 1 + direct.get((f, j), 0)
                values.append([len(own) / divisor * value for value in mean(own)])
            for cluster in clusters_of(values, numbers[f]) if numbers[f] else []:
                members = sorted(i for place in cluster for i in trees[f, places[place]])
                made[tuple(members)] = mean([values[place] for place in cluster])
    return made


def check(reduction, expected):
    assert sorted(map(tuple, reduction.groups())) == sorted(expected)
    for group, row in zip(reduction.groups(), reduction.features.tolist(), strict=True):
        assert row == pytest.approx(expected[tuple(group)], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segments": 1, "threshold": -1.0},
        {"segments": 2, "threshold": 0.0, "events": False},
        {"segments": 1, "threshold": -1.0, "theta": 0.3, "alpha": 0.4},
        {"segments": 1, "threshold": -1.0, "theta": 0.3, "average": "reference", "alpha": 0.0},
        {"alpha": 1.0, "events": False},
    ],
    ids=str,
)
def test_by_definition(grid, options, seed):
    tokens, method = clip(grid, seed), FlashVIDMerge(**options)
    for count in {0, 1, 2, 3, len(grid) // 2, len(grid) - 2, len(grid)}:
        found = method.reduce(tokens, count)
        assert len(found.features) == count
        check(found, flashvid(tokens, count, method))


def test_trees_grow_and_the_averages_differ():
    """Else the oracle would agree on nothing but single tokens."""
    tokens = clip(Grid(5, 2, 3), 1, drift=0.2)
    method = FlashVIDMerge(segments=1, threshold=-1.0, alpha=0.3)
    whole = method.reduce(tokens, 10)
    assert max(map(len, whole.groups())) > 3
    assert {len({i // 6 for i in group}) for group in whole.groups()} > {1}
    reference = replace(method, average="reference").reduce(tokens, 10)
    assert not torch.allclose(whole.features, reference.features)
    longest = max(range(10), key=lambda k: len(whole.groups()[k]))
    assert reference.features[longest].norm() > 1.4 * whole.features[longest].norm()


def test_hand_example_of_segments():
    means = torch.tensor([[1, 0], [0.95, 0.31], [0, 1], [0.05, 1], [-1, 0.1]])[:, None]

    def lengths(segments):
        ends = [0, *(cuts(means, 0.9, segments).nonzero()[:, 0] + 1).tolist(), 5]
        return [b - a for a, b in pairwise(ends)]

    assert lengths(1) == [2, 2, 1]
    assert lengths(4) == [1, 1, 2, 1]


@pytest.mark.parametrize(("ratio", "frame"), [(0.25, 62), (0.1, 25)])
def test_the_share_of_the_paper_is_the_mean_over_layers(ratio, frame):
    pipeline = parse("flashvid", ratio=ratio)
    plan = pipeline.plan(Grid(4, 14, 14), 28, None)
    assert plan.keep == 4 * frame
    assert plan.mean == pytest.approx(ratio * 4 * 196, rel=0.03)
    solved = pipeline.plan(Grid(4, 14, 14), 28, 0.25 * 784)
    assert (solved.keep, min(solved.schedule)) == (245, 20)
    assert solved.mean == pytest.approx(196, abs=0.5)


def test_the_late_cut():
    assert FlashVIDPrune().schedule(28, 62, None) == {20: 19}
    assert FlashVIDPrune().schedule(36, 100, None) == {26: 30}
    assert FlashVIDPrune(k=28, keep_ratio=0.1).schedule(36, 100, None) == {28: 10}
    view = Layer(Grid(1, 3, 3), seed=4)
    rows = view.attention(rows="last", of="previous")[:, 0].mean(0)[view.visual].tolist()
    assert FlashVIDPrune().keep(view, 4).tolist() == sorted(ranked(range(9), rows)[:4])


def test_options():
    with pytest.raises(VLMCompressError, match="flashvid-prune: k must be 1 or more"):
        FlashVIDPrune(k=0)
    with pytest.raises(VLMCompressError, match="flashvid-merge: expansion must be 1 or more"):
        FlashVIDMerge(expansion=0.5)
    with pytest.raises(VLMCompressError, match="needs encoder_attention"):
        FlashVIDMerge().reduce(VisualTokens(torch.ones(4, 2), Grid(1, 2, 2)), 2)
