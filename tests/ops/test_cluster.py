"""Soft clustering on the grid against plain loops."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.cluster import rebuild_weights, soft_cluster


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(x, size, cells, temperature, iterations, window):
    """Centres and nearest labels of one frame in float64."""
    (h, w), (a, b) = size, cells
    places = [(r, c) for r in range(h) for c in range(w)]
    boxes = [(i, j) for i in range(a) for j in range(b)]
    x = x.double()

    def inside(place, part, parts, length):
        return part * length < (place + 1) * parts and place * parts < (part + 1) * length

    centres = []
    for i, j in boxes:
        mine = [p for p, (r, c) in enumerate(places) if inside(r, i, a, h) and inside(c, j, b, w)]
        centres.append(x[mine].mean(0))
    for _ in range(iterations):
        sums, totals = [torch.zeros_like(x[0]) for _ in boxes], [0.0] * len(boxes)
        for p, (r, c) in enumerate(places):
            home = r * a // h, c * b // w
            weights = {
                k: math.exp(-temperature * float((x[p] - centres[k]).square().sum()))
                for k, (i, j) in enumerate(boxes)
                if abs(i - home[0]) <= window // 2 and abs(j - home[1]) <= window // 2
            }
            for k, weight in weights.items():
                share = weight / sum(weights.values())
                sums[k] += share * x[p]
                totals[k] += share
        centres = [one / total for one, total in zip(sums, totals, strict=True)]
    labels = [
        min(range(len(boxes)), key=lambda k: float((one - centres[k]).square().sum())) for one in x
    ]
    return torch.stack(centres).float(), labels


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize(
    ("size", "cells"), [((3, 3), (2, 2)), ((2, 5), (1, 3)), ((5, 2), (4, 1)), ((1, 7), (1, 7))]
)
def test_clusters_agree_with_plain_loops(size, cells, window):
    for seed in range(6):
        x = randn(2, size[0] * size[1], 3, seed=seed)
        for temperature, iterations in ((0.3, 5), (2.0, 2), (1.0, 0)):
            centres, labels = soft_cluster(
                x, size, cells, temperature=temperature, iterations=iterations, window=window
            )
            for frame in range(2):
                expected, nearest = plain(x[frame], size, cells, temperature, iterations, window)
                torch.testing.assert_close(centres[frame], expected, atol=1e-5, rtol=1e-4)
                count = cells[0] * cells[1]
                assert set(labels[frame].tolist()) == set(range(count))
                moved = sum(a != b for a, b in zip(labels[frame].tolist(), nearest, strict=True))
                assert moved == count - len(set(nearest))


def test_the_hand_example_of_expedit():
    x = torch.tensor([0.0, 0, 10, 10])[None, :, None]
    centres, labels = soft_cluster(x, (1, 4), (1, 2), temperature=1.0)
    torch.testing.assert_close(centres[0, :, 0], torch.tensor([0.0, 10.0]))
    assert labels.tolist() == [[0, 0, 1, 1]]


def test_a_centre_moves_to_the_tokens_that_are_like_it():
    # The third token lies in the first cell of 2 and is like the second.
    x = torch.tensor([0.0, 0, 10, 10, 10, 10])[None, :, None]
    centres, labels = soft_cluster(x, (1, 6), (1, 2), temperature=1.0)
    assert labels.tolist() == [[0, 0, 1, 1, 1, 1]]
    torch.testing.assert_close(centres[0, :, 0], torch.tensor([0.0, 10.0]))
    still, _ = soft_cluster(x, (1, 6), (1, 2), temperature=1.0, iterations=0)
    torch.testing.assert_close(still[0, :, 0], torch.tensor([10 / 3, 10.0]))


def test_shares_end_at_the_window():
    # The last token is like those of the first cell, two cells away.
    x = torch.tensor([0.0] * 4 + [5.0] * 4 + [9.0] * 3 + [0.5])[None, :, None]
    near, labels = soft_cluster(x, (1, 12), (1, 3), temperature=1.0, window=3)
    far, _ = soft_cluster(x, (1, 12), (1, 3), temperature=1.0, window=5)
    assert near[0, 0].abs() < 1e-3
    assert far[0, 0].item() == pytest.approx(0.1, abs=1e-3)
    # A label is the nearest of all centres, also outside the window.
    assert labels[0, 11] == 0


def test_a_cell_that_is_nobody_s_nearest_gets_a_token_of_its_own():
    centres, labels = soft_cluster(torch.ones(1, 16, 2), (4, 4), (2, 2))
    torch.testing.assert_close(centres, torch.ones(1, 4, 2))
    # All are nearest to the first; the others take back the first token at home in them.
    assert (labels == 0).sum() == 13
    assert [labels[0].tolist().index(k) for k in range(4)] == [0, 2, 8, 10]


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("cells", [(1, 1), (3, 4), (5, 5)])
def test_every_cell_has_a_label_and_finite_centres(scale, cells):
    x = randn(3, 25, 8) * scale
    centres, labels = soft_cluster(x, (5, 5), cells)
    assert centres.isfinite().all()
    for frame in labels:
        assert set(frame.tolist()) == set(range(cells[0] * cells[1]))


def test_centres_far_from_zero_do_not_lose_their_distances():
    x = randn(1, 36, 4)
    near, labels = soft_cluster(x, (6, 6), (3, 3), temperature=1.0)
    far, same = soft_cluster(x + 1000, (6, 6), (3, 3), temperature=1.0)
    torch.testing.assert_close(far - 1000, near, atol=1e-2, rtol=0)
    assert torch.equal(labels, same)


def test_the_way_back_has_weights_of_sum_one():
    x, centres = torch.zeros(2, 3), torch.eye(4)[:, :3] * 0 + torch.tensor([1.0, 0, 0])
    weights, index = rebuild_weights(x, centres, nearest=4)
    assert weights.tolist() == [[0.25] * 4] * 2
    assert index.tolist() == [[0, 1, 2, 3]] * 2
    long, _ = rebuild_weights(x, centres, nearest=4, norm="l2")
    # The official norm: four equal weights sum to 2.
    assert long.tolist() == [[0.5] * 4] * 2


def test_weights_of_the_way_back_agree_with_plain_loops():
    x, centres = randn(5, 3), randn(7, 3, seed=1)
    for norm, power in (("l1", 1), ("l2", 2)):
        weights, index = rebuild_weights(x, centres, temperature=0.7, nearest=3, norm=norm)
        for p in range(5):
            squares = [float((x[p] - c).square().sum()) for c in centres]
            nearest = sorted(range(7), key=lambda k: squares[k])[:3]
            plain = [math.exp(-0.7 * squares[k]) for k in nearest]
            length = sum(one**power for one in plain) ** (1 / power)
            assert index[p].tolist() == nearest
            assert weights[p].tolist() == pytest.approx([one / length for one in plain], rel=1e-4)


def test_tokens_far_from_all_centres_still_come_back():
    weights, index = rebuild_weights(torch.full((1, 2), 1e4), torch.eye(2), temperature=1.0)
    assert weights.tolist() == [[0.5, 0.5]]
    assert rebuild_weights(torch.zeros(1, 2), torch.eye(2), nearest=9)[1].shape == (1, 2)
    assert index.tolist() == [[0, 1]]


@pytest.mark.parametrize("cells", [(0, 1), (1, 0), (3, 1), (1, 4)])
def test_cells_that_do_not_fit_are_refused(cells):
    with pytest.raises(VLMCompressError, match="cannot cluster 6 tokens of a grid of 2x3"):
        soft_cluster(torch.zeros(1, 6, 2), (2, 3), cells)


def test_features_must_be_finite():
    x = torch.zeros(1, 6, 2)
    x[0, 2, 0] = float("nan")
    with pytest.raises(VLMCompressError, match="finite: 1 of 6 rows"):
        soft_cluster(x, (2, 3), (1, 1))
