"""VScan against its definition in Python floats, and by hand."""

from dataclasses import replace

import pytest
import torch
from plain import cosine, mean, ranked
from shown import LAYERS, Layer

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.vscan_merge import VScanMerge
from vlmcompress.methods.vscan_prune import VScanPrune
from vlmcompress.tokens import Grid, VisualTokens

GRIDS = [Grid(1, 4, 4), Grid(1, 3, 5), Grid(2, 5, 4), Grid(1, 7, 7), Grid(1, 1, 1), Grid(3, 1, 2)]


def shown(grid, seed=0, cls=True):
    draw = torch.Generator().manual_seed(seed)
    seen = {layer: torch.rand(len(grid), generator=draw) for layer in (1, 5)}
    signal = {"layer_cls_attention" if cls else "encoder_attention": seen}
    return VisualTokens(torch.randn(len(grid), 4, generator=draw), grid, **signal)


def window_of(place, grid, side):
    row, column = divmod(place, grid.w)
    down, across = max(1, grid.h // side), max(1, grid.w // side)
    return min(row // side, down - 1), min(column // side, across - 1)


def local_of(scores, grid, side, count, even):
    """Window by window, or a walk from the best token down."""
    places = ranked(range(grid.h * grid.w), scores)
    number = max(1, grid.h // side) * max(1, grid.w // side)
    most = count // number if even else -(-count // number)
    taken, full = [], {}
    for place in places:
        window = window_of(place, grid, side)
        if full.get(window, 0) < most and len(taken) < count:
            taken.append(place)
            full[window] = full.get(window, 0) + 1
    return taken + [place for place in places if place not in taken][: count - len(taken)]


def kept_of(tokens, count, side, even, share=0.5):
    grid = tokens.grid
    seen = tokens.layer_cls_attention or tokens.encoder_attention
    frame, kept = grid.h * grid.w, []
    for t in range(grid.t):
        shallow, deep = (seen[n][t * frame : (t + 1) * frame].tolist() for n in (1, 5))
        quota = (t + 1) * count // grid.t - t * count // grid.t
        local = local_of(shallow, grid, side, int(share * quota), even)
        rest = [place for place in ranked(range(frame), deep) if place not in local]
        kept += [t * frame + place for place in local + rest[: quota - len(local)]]
    return sorted(kept)


def groups_of(tokens, kept):
    rows = tokens.features.tolist()
    found = {place: [] for place in kept}
    for place, row in enumerate(rows):
        best = max(kept, key=lambda k: (cosine(row, rows[k]), -k))
        found[place if place in kept else best].append(place)
    return {tuple(members): mean([rows[i] for i in members]) for members in found.values()}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cls", [True, False], ids=["cls", "received"])
@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_by_definition(grid, side, cls, seed):
    tokens, method = shown(grid, seed, cls), VScanMerge(window=side)
    for count in {0, 1, 2, len(grid) // 2, len(grid) - 1, len(grid)} & {*range(len(grid) + 1)}:
        kept = kept_of(tokens, count, side, even=cls)
        alone = replace(method, merge=False).reduce(tokens, count)
        assert [group for (group,) in alone.groups()] == kept
        assert torch.equal(alone.features, tokens.features[kept])
        if count:
            merged, expected = method.reduce(tokens, count), groups_of(tokens, kept)
            assert sorted(map(tuple, merged.groups())) == sorted(expected)
            for group, row in zip(merged.groups(), merged.features.tolist(), strict=True):
                assert row == pytest.approx(expected[tuple(group)], abs=1e-5)


def test_hand_example():
    """Windows of 2 x 2, one local token of each; then four of the rest by the deep layer."""
    grid = Grid(1, 4, 4)
    shallow = torch.tensor([5.0, 1, 2, 9, 3, 4, 8, 7, 6, 2, 1, 1, 1, 1, 1, 3])
    deep = torch.tensor([1.0, 9, 8, 2, 7, 1, 1, 1, 1, 1, 6, 5, 4, 1, 1, 3])
    tokens = VisualTokens(torch.eye(16), grid, layer_cls_attention={5: shallow, 22: deep})
    found = VScanMerge(window=2, merge=False).reduce(tokens, 8)
    assert found.anchors.tolist() == [0, 1, 2, 3, 4, 8, 10, 15]
    local = VScanMerge(window=2, merge=False, share=1.0).reduce(tokens, 4)
    assert local.anchors.tolist() == [0, 3, 8, 15]


def test_what_windows_cannot_share_goes_to_the_best_outside():
    """100 tokens, 50 of them local, in 16 windows: 3 each, and 2 more."""
    grid = Grid(1, 24, 24)
    tokens = shown(grid, 3)
    scores = tokens.layer_cls_attention[1].tolist()
    local = VScanMerge(merge=False, share=1.0).reduce(tokens, 50).anchors.tolist()
    inside = [
        sum(window_of(p, grid, 6) == (r, c) for p in local) for r in range(4) for c in range(4)
    ]
    assert sorted(inside)[0] == 3
    assert sum(inside) == 50
    assert sorted(local) == sorted(local_of(scores, grid, 6, 50, even=True))
    assert len(VScanMerge(merge=False).reduce(tokens, 100).anchors) == 100


def test_windows_are_smaller_without_cls():
    tokens = shown(Grid(1, 12, 12), 1, cls=False)
    falling = {1: -torch.arange(144.0), 5: tokens.encoder_attention[5]}
    tokens = replace(tokens, encoder_attention=falling)
    found = VScanMerge().reduce(tokens, 20).groups()
    assert found == VScanMerge(window=4).reduce(tokens, 20).groups()
    assert found != VScanMerge(window=6).reduce(tokens, 20).groups()


@pytest.mark.parametrize(
    ("depth", "whole", "layers"),
    [
        (23, range(23), {5, 22}),
        (32, (7, 15, 23, 31), {7, 31}),
        (LAYERS, range(LAYERS), {1, 5}),
        (1, (0,), {0}),
    ],
    ids=str,
)
def test_layers_of_the_tower(depth, whole, layers):
    assert set(VScanMerge().encoder_layers(depth, whole)) == layers


def test_the_cut_in_the_middle():
    method = VScanPrune()
    assert method.schedule(32, 96, None) == {16: 32}
    assert method.schedule(28, 96, 64) == {14: 32}
    assert VScanPrune(k=20).schedule(32, 90, None) == {20: 30}
    view = Layer(Grid(1, 3, 3), seed=2)
    for rope in (True, False):
        rows = view.attention(rows="last", rope=rope)[:, 0].mean(0)[view.visual].tolist()
        kept = VScanPrune(rope=rope).keep(view, 4).tolist()
        assert kept == sorted(ranked(range(9), rows)[:4])


def test_both_stages_meet_a_mean_as_three_to_one():
    plan = parse("vscan").plan(Grid(1, 24, 24), 32, 64)
    assert (plan.keep, plan.schedule) == (96, {16: 32})
    assert plan.mean == 64
    assert parse("vscan").plan(Grid(1, 24, 24), 32, None).mean == 64


def test_options():
    with pytest.raises(VLMCompressError, match="vscan-merge: window must be 1 or more, got 0"):
        VScanMerge(window=0)
    with pytest.raises(VLMCompressError, match="vscan-prune: k must be 1 or more, got 0"):
        VScanPrune(k=0)
    with pytest.raises(VLMCompressError, match="needs layer_cls_attention or encoder_attention"):
        VScanMerge().reduce(VisualTokens(torch.ones(4, 2), Grid(1, 2, 2)), 2)
