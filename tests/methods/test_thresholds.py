"""Thresholds in place of budgets, against their definitions in Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from plain import CLIPS, clip, cosine, mean, ranked
from test_fastvid import check, peak_scores, segments

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods import get_method
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.before_projector import PixelTokens, TokenPatches
from vlmcompress.methods.registry import METHODS
from vlmcompress.tokens import Grid, VisualTokens

SPECS = [
    "divprune",
    "evs",
    "vidcom2",
    "fastvid",
    "tome(stage='projector')",
    "pixelprune",
    "unit-drop",
]
SELECTORS, REDUCERS = SPECS[:3], SPECS[3:5]
GRIDS = [*CLIPS, Grid(1, 5, 5), Grid(4, 3, 3)]


def made(spec, threshold=None):
    (method,) = parse(spec, **({} if threshold is None else {"threshold": threshold})).methods
    return method


def patchwork(grid, seed=0, kinds=4):
    """Tokens of a few kinds, each a little off, so that many repeat others but for a little."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randn(kinds, 6, generator=draw)
    own = torch.randint(len(kinds), (len(grid),), generator=draw)
    features = kinds[own] + 0.2 * torch.randn(len(grid), 6, generator=draw)
    return VisualTokens(features, grid, cls_attention=torch.rand(len(grid), generator=draw))


def divprune(shown, threshold):
    rows = shown.features.tolist()
    apart = [[round(1 - cosine(a, b), 6) for b in rows] for a in rows]
    places = range(len(rows))
    alone = [min((apart[i][j] for j in places if j != i), default=9) for i in places]
    picks = [max(places, key=lambda i: (alone[i], -i))]
    while len(picks) < len(rows):
        near = {i: min(apart[i][p] for p in picks) for i in places if i not in picks}
        found = max(near, key=lambda i: (near[i], -i))
        if near[found] <= threshold:
            break
        picks.append(found)
    return sorted(picks)


def evs(shown, threshold):
    rows, frame = shown.features.tolist(), shown.grid.h * shown.grid.w
    later = range(frame, len(rows))
    changed = [i for i in later if 1 - cosine(rows[i], rows[i - frame]) > threshold]
    return [*range(frame), *changed]


def vidcom2(shown, threshold):
    frame = shown.grid.h * shown.grid.w
    columns = list(zip(*shown.features.tolist(), strict=True))
    spread = [sum((x - sum(c) / len(c)) ** 2 for x in c) for c in columns]
    steady = sorted(sorted(range(6), key=lambda c: (spread[c], c))[:3])
    rows = [[row[c] for c in steady] for row in shown.features.tolist()]
    rows = [[x / math.hypot(*row) for x in row] for row in rows]

    def alike(row, middle):
        apart = math.dist(row, middle) ** 2
        return sum(math.exp(-apart / (2 * 2.0**power)) for power in range(-3, 2)) / 10

    whole = mean(rows)
    kept = []
    for i, row in enumerate(rows):
        start = i // frame * frame
        if 1 - alike(row, whole) - alike(row, mean(rows[start : start + frame])) > threshold:
            kept.append(i)
    return kept or [0]


ORACLES = {"divprune": divprune, "evs": evs, "vidcom2": vidcom2}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_by_definition(name, grid, seed):
    shown, counts = patchwork(grid, seed), set()
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.5, 0.9):
        kept = made(name, threshold).select(shown, len(grid)).tolist()
        assert kept == ORACLES[name](shown, threshold)
        counts.add(len(kept))
    assert len(counts) > 1 or len(grid) < 25 or (name == "evs" and grid.t == 1)


def merged_pairs(shown, threshold):
    """ToMe in rounds: {members: features}."""
    groups = [([i], row) for i, row in enumerate(shown.features.tolist())]
    while True:
        even, odd = range(0, len(groups), 2), range(1, len(groups), 2)
        best = {
            i: max(odd, key=lambda j, i=i: (cosine(groups[i][1], groups[j][1]), -j))
            for i in even
            if odd
        }
        alike = {i: cosine(groups[i][1], groups[j][1]) for i, j in best.items()}
        joining = [i for i in ranked(best, alike) if alike[i] >= 1 - threshold]
        joining = joining[: len(groups) // 2]
        if not joining:
            return {tuple(sorted(members)): row for members, row in groups}
        found = []
        for j, (members, row) in enumerate(groups):
            if j in joining:
                continue
            parts = [(members, row), *(groups[i] for i in joining if best[i] == j)]
            total = sum(len(own) for own, _ in parts)
            middle = [sum(len(own) * one[c] for own, one in parts) / total for c in range(len(row))]
            found.append((sorted(m for own, _ in parts for m in own), middle))
        groups = sorted(found)


def absorbed(shown, threshold):
    """FastVID: {members: features}."""
    rows, frame = shown.features.tolist(), shown.grid.h * shown.grid.w
    result = {}
    for part in segments(shown, 8, 0.9):
        own = [i for t in part for i in range(t * frame, (t + 1) * frame)]
        score = dict(zip(own, peak_scores([rows[i] for i in own]), strict=True))
        peaks = []
        for i in ranked(own, score):
            if all(1 - cosine(rows[i], rows[p]) > threshold for p in peaks):
                peaks.append(i)
        owner = {
            i: i if i in peaks else max(sorted(peaks), key=lambda p: cosine(rows[i], rows[p]))
            for i in own
        }
        for peak in peaks:
            members = tuple(i for i in own if owner[i] == peak)
            weight = max(0.6, 1 / (len(members) + 1))
            pairs = zip(rows[peak], mean([rows[i] for i in members]), strict=True)
            result[members] = [weight * a + (1 - weight) * m for a, m in pairs]
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("spec", "oracle"), [*zip(REDUCERS, (absorbed, merged_pairs), strict=True)]
)
def test_reducers_by_definition(spec, oracle, grid, seed):
    shown, counts = patchwork(grid, seed), set()
    for threshold in (0.01, 0.05, 0.1, 0.3, 1.0):
        found = made(spec, threshold).reduce(shown, len(grid))
        check(found, oracle(shown, threshold))
        counts.add(len(found.features))
    assert len(counts) > 1 or len(grid) < 25


def test_hand_example():
    """Directions at 0, 10, 90, 100 and 190 degrees: distances 1 - cos of 10 is .015, of 90 is 1.

    The first pick is 190, 90 from its nearest; then 10, right opposite, then 100, at 90 from both;
    0 and 90 are 10 degrees from a pick.
    """
    angles = torch.tensor([0.0, 10, 90, 100, 190]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1)
    shown = VisualTokens(features, Grid(1, 1, 5))
    method = made("divprune", 0.02)
    assert method.select(shown, 5).tolist() == [1, 3, 4]
    assert method.pick(shown, 5).tolist() == [4, 1, 3]
    assert made("divprune", 0.01).select(shown, 5).tolist() == [0, 1, 2, 3, 4]
    assert made("divprune", 1.2).select(shown, 5).tolist() == [1, 4]
    # As two halves: 0 and 90 and 190 on one side, 10 and 100 on the other.
    assert made(REDUCERS[1], 0.02).reduce(shown, 5).groups() == [[0, 1], [2, 3], [4]]


def test_copies_go_at_threshold_0_and_nothing_else():
    features = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    features[4] = 2 * features[1]
    features[8] = features[1]
    shown = VisualTokens(features, Grid(3, 1, 3), cls_attention=torch.rand(9))
    kept = made("divprune", 0).select(shown, 9).tolist()
    assert len(kept) == 7
    assert len({1, 4, 8} & {*kept}) == 1
    assert made("evs", 0).select(shown, 9).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert made("fastvid(segments=1, border=-1)", 0).reduce(shown, 9).groups() == [
        [0],
        [1, 4, 8],
        *([i] for i in (2, 3, 5, 6, 7)),
    ]


def test_pixels_that_repeat_go_up_to_the_threshold():
    pixels = torch.tensor([0.0, 0.1, 0.3, 0.3])[:, None]
    shown = PixelTokens(pixels, Grid(1, 1, 4))
    kept = {
        t: made("pixelprune", t).select(shown, 4, exact=False).tolist() for t in (0.0, 0.15, 0.25)
    }
    assert kept == {0.0: [0, 1, 2], 0.15: [0, 2], 0.25: [0, 2]}


def test_units_whose_patches_are_alike_leave_the_tower():
    """Spreads over squared lengths: 0 / 50, 2 / 4 and .5 / 25."""
    patches = [[[5, 0], [5, 0]], [[0, 0], [2, 0]], [[3, 0], [4, 0]]]
    shown = TokenPatches(torch.tensor(patches, dtype=torch.float32)[None], Grid(1, 1, 3))
    kept = {t: made("unit-drop", t).select(shown, 3)[0].tolist() for t in (0, 0.02, 0.1, 0.6)}
    assert kept == {0: [1, 2], 0.02: [1], 0.1: [1], 0.6: [0]}
    means = made("unit-drop(score='farthest')", 0.01).select(shown, 3)[0].tolist()
    assert means == [0]


@pytest.mark.parametrize("spec", SPECS)
def test_only_an_instance_with_a_threshold_is_adaptive(spec):
    kind, plain, one = METHODS.get(made(spec).name), made(spec), made(spec, 0.1)
    assert one.adaptive
    assert one.keep_count(Grid(2, 4, 4), None) == 32
    if spec != "pixelprune":
        assert not kind.adaptive
        assert not plain.adaptive


@pytest.mark.parametrize("spec", SPECS)
def test_a_threshold_and_a_budget_do_not_go_together(spec):
    pipeline = parse(spec, threshold=0.1)
    with pytest.raises(BudgetError, match=r"threshold=0\.1 the content decides") as error:
        pipeline.plan(Grid(1, 6, 6), 4, 9)
    assert "\n" not in str(error.value)
    assert pipeline.has_threshold
    assert not parse(spec).has_threshold


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf, "a"])
@pytest.mark.parametrize("spec", SPECS)
def test_thresholds_are_checked(spec, threshold):
    with pytest.raises(VLMCompressError, match="threshold must be") as error:
        made(spec, threshold)
    assert "\n" not in str(error.value)


def test_what_a_threshold_cannot_go_with():
    with pytest.raises(VLMCompressError, match="goes with stage='projector'"):
        get_method("tome", threshold=0.1)
    with pytest.raises(VLMCompressError, match="give one of them"):
        get_method("pixelprune", threshold=0.1, tolerance=0.2)


@pytest.mark.parametrize("spec", SELECTORS + REDUCERS)
def test_features_that_are_not_finite_are_one_clear_error(spec):
    shown = clip(Grid(2, 2, 2))
    shown.features[5, 2] = math.nan
    method = made(spec, 0.1)
    with pytest.raises(VLMCompressError, match="features must be finite"):
        (method.select if spec in SELECTORS else method.reduce)(shown, 8)
