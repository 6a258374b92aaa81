"""Pooling windows against a loop over tokens."""

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.pool import geometry, strided, window
from vlmcompress.tokens import Grid

GRIDS = [Grid(1, 4, 4), Grid(1, 12, 12), Grid(3, 5, 7), Grid(2, 1, 9), Grid(1, 1, 1)]


def inside(place, part, parts, size):
    """place in [floor(part*size/parts), ceil((part+1)*size/parts))."""
    return part * size < (place + 1) * parts and place * parts < (part + 1) * size


def windows(grid, a, b):
    return [
        [
            (t * grid.h + r) * grid.w + c
            for r in range(grid.h)
            for c in range(grid.w)
            if inside(r, i, a, grid.h) and inside(c, j, b, grid.w)
        ]
        for t in range(grid.t)
        for i in range(a)
        for j in range(b)
    ]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_windows_and_means(grid):
    features = torch.randn(len(grid), 6, generator=torch.Generator().manual_seed(0))
    for a in range(1, grid.h + 1):
        for b in range(1, grid.w + 1):
            made = window(features, grid, (a, b))
            groups = windows(grid, a, b)
            assert made.groups() == groups
            expected = torch.stack([features[group].mean(0) for group in groups])
            torch.testing.assert_close(made.features, expected)


def test_hand_examples():
    # M3: values 0..15 on 4x4 to 2x2.
    values = torch.arange(16.0)[:, None]
    assert window(values, Grid(1, 4, 4), (2, 2)).features[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    # 3x3 to 2x2: windows share their middle row and column.
    made = window(torch.arange(9.0)[:, None], Grid(1, 3, 3), (2, 2))
    assert made.features[:, 0].tolist() == [2, 3, 5, 6]
    assert made.groups() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_places_ascend_and_nothing_is_left_out(grid):
    for a in range(1, grid.h + 1):
        made = window(torch.zeros(len(grid), 1), grid, (a, max(1, grid.w // 2)))
        anchors = made.anchors.tolist()
        assert anchors == sorted(set(anchors))
        assert sorted({m for group in made.groups() for m in group}) == list(range(len(grid)))


def test_as_many_windows_as_tokens_changes_nothing():
    features = torch.randn(12, 5).bfloat16()
    made = window(features, Grid(1, 3, 4), (3, 4))
    assert torch.equal(made.features, features)
    assert made.groups() == [[i] for i in range(12)]


def test_half_precision_is_averaged_in_float32():
    features = torch.tensor([256.0, 1, 1, 1]).bfloat16()[:, None]
    made = window(features, Grid(1, 2, 2), (1, 1))
    assert made.features.dtype == torch.bfloat16
    # Summed in bfloat16, 256 + 1 would stay 256.
    assert made.features.item() == torch.tensor(259 / 4).bfloat16().item()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(VLMCompressError, match="9 features do not fit a grid of 2x4"):
        window(torch.zeros(9, 2), Grid(1, 2, 4), (1, 1))
    for shape in [(0, 1), (3, 1), (1, 5), (1, 0), (2, 1, 1), (0, 1, 1)]:
        with pytest.raises(VLMCompressError, match="windows on a grid of 2x4"):
            window(torch.zeros(8, 2), Grid(1, 2, 4), shape)


def test_windows_over_time():
    # The hand example of PLLaVA: 0..26 on 3x3x3 to 2x2x2.
    made = window(torch.arange(27.0)[:, None], Grid(3, 3, 3), (2, 2, 2))
    expected = [6.5, 7.5, 9.5, 10.5, 15.5, 16.5, 18.5, 19.5]
    assert made.features[:, 0].tolist() == expected
    for grid in (Grid(5, 3, 4), Grid(2, 1, 9), Grid(7, 2, 2)):
        features = torch.randn(len(grid), 3, generator=torch.Generator().manual_seed(0))
        for s in range(1, grid.t + 1):
            made = window(features, grid, (s, 1, 2))
            # Time as the rows of a picture, a row of the grid at a time.
            flat = window(features, Grid(1, grid.t, grid.h * grid.w), (s, 1))
            assert len(made.features) == 2 * s
            for k in range(s):
                both = set(made.groups()[2 * k]) | set(made.groups()[2 * k + 1])
                assert sorted(both) == flat.groups()[k]
            for k, group in enumerate(made.groups()):
                torch.testing.assert_close(made.features[k], features[group].mean(0))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"kernel": 3, "stride": 3}, (3, 3, 8)),
        ({"kernel": 5, "stride": 5}, (5, 5, 4)),
        ({"kernel": 24, "stride": 1}, (24, 1, 1)),
        ({"output": 8}, (3, 3, 8)),
        ({"output": 11}, (4, 2, 11)),
        ({"output": 14}, (11, 1, 14)),
        ({"output": 1}, (24, 24, 1)),
        ({"output": 24}, (1, 1, 24)),
        ({"output": 8, "stride": 2}, (10, 2, 8)),
        ({"output": 6, "kernel": 4}, (4, 4, 6)),
        ({"output": 7, "kernel": 6}, (6, 3, 7)),
        ({"output": 1, "kernel": 5}, (5, 5, 1)),
    ],
)
def test_geometry_of_windows_on_24_tokens(asked, found):
    assert geometry(24, **asked) == found
    kernel, stride, output = found
    assert (output - 1) * stride + kernel <= 24


def test_27_to_14_is_nearly_global():
    assert geometry(27, output=14) == (14, 1, 14)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"kernel": 3},
        {"stride": 3},
        {"kernel": 3, "stride": 3, "output": 8},
        {"kernel": 25, "stride": 1},
        {"kernel": 0, "stride": 1},
        {"kernel": 3, "stride": 0},
        {"output": 25},
        {"output": 0},
        {"output": 13, "stride": 2},
        {"output": 13, "kernel": 20},
    ],
    ids=str,
)
def test_impossible_windows_are_refused(asked):
    with pytest.raises(VLMCompressError, match="windows") as error:
        geometry(24, **asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("grid", "axes"),
    [
        (Grid(1, 4, 4), [(1, 1, 1), (2, 2, 2), (2, 2, 2)]),
        (Grid(5, 4, 7), [(2, 2, 2), (3, 1, 2), (3, 3, 2)]),
        (Grid(3, 2, 5), [(3, 1, 1), (1, 1, 2), (4, 1, 2)]),
        (Grid(1, 1, 1), [(1, 1, 1)] * 3),
    ],
    ids=str,
)
def test_weighted_windows_agree_with_plain_loops(grid, axes):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(len(grid), 3, generator=g)
    scores = torch.randn(len(grid), generator=g) * 3
    (kt, st, ot), (kh, sh, oh), (kw, sw, ow) = axes
    groups = [
        [
            ((i * st + t) * grid.h + j * sh + r) * grid.w + k * sw + c
            for t in range(kt)
            for r in range(kh)
            for c in range(kw)
        ]
        for i in range(ot)
        for j in range(oh)
        for k in range(ow)
    ]
    plain, weighted = strided(features, grid, axes), strided(features, grid, axes, scores)
    assert plain.groups() == weighted.groups() == groups
    for k, group in enumerate(groups):
        torch.testing.assert_close(plain.features[k], features[group].mean(0))
        weights = scores[group].exp() / scores[group].exp().sum()
        torch.testing.assert_close(weighted.features[k], weights @ features[group])


def test_the_hand_example_of_ppllava():
    z, axes = torch.tensor([[1.0], [2], [3], [4]]), [(1, 1, 1), (2, 2, 1), (2, 2, 1)]

    def pooled(*weights):
        scores = torch.tensor(weights) / 0.01 if weights else None
        return strided(z, Grid(1, 2, 2), axes, scores).features.item()

    assert pooled() == 2.5
    assert pooled(0.7, 0.1, 0.1, 0.1) == pytest.approx(1, abs=1e-6)
    assert pooled(0.26, 0.25, 0.25, 0.24) == pytest.approx(1.8068, abs=1e-4)


def test_windows_that_do_not_fit_are_refused():
    axes = [(1, 1, 1), (2, 2, 1), (2, 2, 2)]
    with pytest.raises(VLMCompressError, match="9 features do not fit a grid of 2x4"):
        strided(torch.zeros(9, 2), Grid(1, 2, 4), axes)
    for wrong in [(2, 2, 1), (1, 0, 1), (0, 1, 1), (1, 1, 2)]:
        with pytest.raises(VLMCompressError, match="do not fit 1 tokens of a grid of 2x4"):
            strided(torch.zeros(8, 2), Grid(1, 2, 4), [wrong, *axes[1:]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_must_be_finite(bad):
    features = torch.zeros(8, 2)
    features[3, 1] = bad
    with pytest.raises(VLMCompressError, match="finite: 1 of 8 rows"):
        window(features, Grid(1, 2, 4), (1, 2))
    with pytest.raises(VLMCompressError, match="finite: 1 of 8 rows"):
        strided(features, Grid(1, 2, 4), [(1, 1, 1), (2, 2, 1), (2, 2, 2)])


def test_windows_are_known_without_the_device(monkeypatch):
    """Tensors on "meta" have no data: whoever asks for some fails, as the check of features."""
    monkeypatch.setattr("vlmcompress.ops.pool.finite", torch.Tensor.float)
    grid, axes = Grid(2, 3, 5), [(2, 1, 1), (2, 1, 2), (3, 2, 2)]
    x = torch.zeros(30, 4, device="meta")
    made = window(x, grid, (2, 2))
    assert (made.features.shape, made.members.shape) == ((8, 4), (2 * 4 * 6,))
    made = strided(x, grid, axes, x[:, 0])
    assert (made.features.shape, made.members.shape) == ((4, 4), (4 * 12,))
