"""Mergers after the projector, and AIM inside frames."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from mergers import AFTER, GRIDS, MERGERS, by_name, randn

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.aim_merge import AimMerge
from vlmcompress.methods.mctf import MCTF
from vlmcompress.methods.pitome import PiToMe
from vlmcompress.methods.shared.token_merging import Merger
from vlmcompress.methods.tome import ToMe
from vlmcompress.ops.groups import reduce
from vlmcompress.ops.merge import bipartite, energy_matching, three_factor
from vlmcompress.tokens import Grid, VisualTokens


def image(grid, seed=0, **changes):
    n = len(grid)
    given = {"encoder_attention": {3: torch.ones(n), 5: randn(n, seed=seed).exp()}}
    return VisualTokens(**{"features": randn(n, 8, seed=seed), "grid": grid, **given, **changes})


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "method", [*AFTER, *MERGERS, AimMerge(), AimMerge(order="raster")], **by_name
)
def test_reducing_makes_the_count(method, grid):
    for dtype in (torch.float32, torch.bfloat16):
        tokens = image(grid, features=randn(len(grid), 8).to(dtype))
        before = tokens.features.clone()
        for count in range(grid.t, len(grid) + 1, grid.t):
            made = method.reduce(tokens, count)
            groups = made.groups()
            assert made.features.shape == (count, 8)
            assert made.features.dtype == dtype
            assert sorted(chain(*groups)) == list(range(len(grid)))
            assert [group[0] for group in groups] == sorted(group[0] for group in groups)
            assert all(group == sorted(group) for group in groups)
            for k, group in enumerate(groups):
                if len(group) == 1:
                    assert torch.equal(made.features[k], before[group[0]])
        assert method.reduce(tokens, len(grid) + 5).groups() == [[i] for i in range(len(grid))]
        assert torch.equal(tokens.features, before)
    if isinstance(method, Merger):
        assert method.reduce(tokens, 0).features.shape == (0, 8)
        assert method.reduce(tokens, 0).groups() == []


def test_tome_in_rounds_is_the_mean_of_all_members():
    tokens = image(Grid(1, 4, 5))
    for sizes in (None, torch.arange(20.0) + 1):
        made = ToMe().reduce(replace(tokens, sizes=sizes), 3)
        weights = torch.ones(20) if sizes is None else sizes
        for k, group in enumerate(made.groups()):
            w = weights[group][:, None]
            expected = (w * tokens.features[group]).sum(0) / w.sum()
            torch.testing.assert_close(made.features[k], expected)
    # A plain mean of means is another one.
    assert max(map(len, PiToMe().reduce(tokens, 3).groups())) > 2


def test_the_first_round_is_the_matching():
    x = randn(1, 12, 8)
    attention = randn(12).exp()
    tokens = VisualTokens(x[0], Grid(1, 3, 4), encoder_attention={2: torch.ones(12), 7: attention})
    expected = {
        ToMe(): bipartite(x, 4),
        PiToMe(margin=0.4): energy_matching(x, 4, 0.4),
        MCTF(): three_factor(x, attention[None], torch.ones(1, 12), 4),
        AimMerge(): bipartite(x, 4),
    }
    for method, leader in expected.items():
        weights = attention[None] if isinstance(method, MCTF) else torch.ones(1, 12)
        means, groups = reduce(x, leader, weights)
        made = method.reduce(tokens, 8)
        torch.testing.assert_close(made.features, means[0])
        assert made.groups() == groups.reduction(means).groups()
    sharp = MCTF(tau_attention=0.5)
    blind = sharp.reduce(replace(tokens, encoder_attention=None), 8)
    assert blind.groups() != sharp.reduce(tokens, 8).groups()


def test_attention_of_a_group_is_the_sum_of_its_members():
    tokens = image(Grid(1, 4, 4))
    attention = tokens.encoder_attention[5]
    x, sizes, a, members = tokens.features, torch.ones(16), attention, [[i] for i in range(16)]
    for count in (8, 4, 3):
        leader = three_factor(x[None], a[None], sizes[None], len(x) - count)[0].tolist()
        groups = sorted([i for i, one in enumerate(leader) if one == h] for h in set(leader))
        weights = [[float(a[i] * sizes[i]) for i in group] for group in groups]
        x = torch.stack(
            [
                sum(w * x[i] for w, i in zip(ws, group, strict=True)) / sum(ws)
                for ws, group in zip(weights, groups, strict=True)
            ]
        )
        sizes = torch.stack([sizes[group].sum() for group in groups])
        a = torch.stack([a[group].sum() for group in groups])
        members = [sorted(chain(*(members[i] for i in group))) for group in groups]
    made = MCTF().reduce(tokens, 3)
    assert made.groups() == members
    torch.testing.assert_close(made.features, x)


def plain_aim(x, keep, size_weighted=False, compared=slice(None)):
    """AIM's rounds as lists: (feature, members), by the columns `compared` of the features."""
    crowd = [(one.double(), [i]) for i, one in enumerate(x)]
    while len(crowd) > keep:
        r = min(len(crowd) // 2, len(crowd) - keep)
        even, odd = crowd[::2], crowd[1::2]
        unit = torch.nn.functional.normalize
        c = [
            [float(unit(a[compared], dim=0) @ unit(b[compared], dim=0)) for b, _ in odd]
            for a, _ in even
        ]
        order = sorted(range(len(even)), key=lambda i: -max(c[i]))
        joined = [[one] for one in odd]
        for i in order[:r]:
            joined[c[i].index(max(c[i]))].append(even[i])
        merged = []
        for group in joined:
            weights = [len(m) if size_weighted else 1 for _, m in group]
            mean = sum(w * f for w, (f, _) in zip(weights, group, strict=True)) / sum(weights)
            merged.append((mean, sorted(chain(*(m for _, m in group)))))
        crowd = [even[i] for i in order[r:]] + merged
    return sorted(crowd, key=lambda one: one[1][0])


@pytest.mark.parametrize("means", ["plain", "size"])
def test_aim_agrees_with_plain_loops_in_every_frame(means):
    grid = Grid(3, 2, 5)
    for seed in range(10):
        tokens = image(grid, seed=seed)
        for keep in range(1, 10):
            made = AimMerge(means=means).reduce(tokens, 3 * keep)
            frames = [plain_aim(x, keep, means == "size") for x in tokens.features.split(10)]
            expected = [
                (f, [10 * t + i for i in m]) for t, one in enumerate(frames) for f, m in one
            ]
            assert made.groups() == [members for _, members in expected]
            features = torch.stack([f for f, _ in expected]).float()
            torch.testing.assert_close(made.features, features)


def test_the_order_between_rounds_makes_other_pairs():
    tokens = image(Grid(1, 6, 6))
    a, b = (AimMerge(order=order).reduce(tokens, 9).groups() for order in ("similarity", "raster"))
    assert a != b
    one = [AimMerge(order=order).reduce(tokens, 18).groups() for order in ("similarity", "raster")]
    assert one[0] == one[1]


def test_aim_may_compare_keys():
    tokens = image(Grid(1, 3, 4), keys=randn(12, 3, seed=9))
    made = AimMerge(metric="keys").reduce(tokens, 7)
    means, groups = reduce(
        tokens.features[None], bipartite(tokens.keys[None], 5), torch.ones(1, 12)
    )
    torch.testing.assert_close(made.features, means[0])
    assert made.groups() == groups.reduction(means).groups()
    assert made.groups() != AimMerge().reduce(tokens, 7).groups()
    # Three rounds; keys are merged with the features.
    both = torch.cat([tokens.features, tokens.keys], dim=1)
    made, expected = (
        AimMerge(metric="keys").reduce(tokens, 2),
        plain_aim(both, 2, False, slice(8, 11)),
    )
    assert made.groups() == [members for _, members in expected]
    features = torch.stack([f[:8] for f, _ in expected]).float()
    torch.testing.assert_close(made.features, features)
    with pytest.raises(VLMCompressError, match="metric='keys' needs keys"):
        AimMerge(metric="keys").reduce(replace(tokens, keys=None), 7)


@pytest.mark.parametrize(
    ("grid", "budget", "count"),
    [
        (Grid(1, 14, 14), None, 49),
        (Grid(32, 14, 14), None, 32 * 49),
        (Grid(32, 14, 14), 1568, 1568),
        (Grid(32, 14, 14), 1599, 1568),
        (Grid(3, 4, 4), 8, 6),
        (Grid(1, 24, 24), 252.4, 252),
        (Grid(1, 1, 1), None, 1),
        (Grid(1, 1, 1), 9, 1),
        (Grid(2, 1, 1), None, 2),
    ],
)
def test_counts_of_aim(grid, budget, count):
    assert AimMerge().keep_count(grid, budget) == count
    if budget is None and grid.h == 14:
        assert AimMerge(ratio=0.125).keep_count(Grid(1, 24, 24), None) == 72


def test_aim_refuses_what_it_cannot_make():
    with pytest.raises(BudgetError, match="smallest budget for a grid of 4x2x2 is 4, got 3"):
        AimMerge().keep_count(Grid(4, 2, 2), 3)
    with pytest.raises(VLMCompressError, match=r"cannot make 6 tokens of 4 frames; .* is 4"):
        AimMerge().reduce(image(Grid(4, 2, 2)), 6)


@pytest.mark.parametrize("method", [*AFTER, AimMerge()], **by_name)
def test_what_is_not_finite_is_one_clear_error(method):
    features = randn(16, 8)
    features[3, 2] = float("nan")
    with pytest.raises(VLMCompressError, match="1 of 16 rows"):
        method.reduce(image(Grid(1, 4, 4), features=features), 5)
    received = torch.ones(16)
    received[3] = float("inf")
    with pytest.raises(VLMCompressError, match="encoder_attention must be finite"):
        MCTF().reduce(image(Grid(1, 4, 4), encoder_attention={5: received}), 5)
