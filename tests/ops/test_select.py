"""top_k against sorting, farthest_point against its definition."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import farthest_point_cpu as farthest
from vlmcompress.ops import select
from vlmcompress.ops.select import farthest_point, top_k


def rows_at(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best(scores, count):
    """The definition of top_k: highest first, of equals the lowest index, then ascending."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(order[:count])


def diverse(rows, count):
    """The definition of greedy max-min diversity, in Python floats: Algorithm 1 of DivPrune."""
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    everyone = range(len(rows))

    def distance(i, j):
        return 1 - sum(a * b for a, b in zip(rows[i], rows[j], strict=True))

    nearest = [min((distance(i, j) for j in everyone if j != i), default=0) for i in everyone]
    picked = [nearest.index(max(nearest))]
    while len(picked) < count:
        left = [i for i in everyone if i not in picked]
        picked.append(max(left, key=lambda i: (min(distance(i, p) for p in picked), -i)))
    return picked


# A limit of 0 bytes, or one that holds a few rows, forces the path without a matrix.
PATHS = pytest.mark.parametrize("max_bytes", [select.MATRIX_BYTES, 0, 100], ids=["AA", "B1", "Bn"])


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_top_k_is_a_stable_sort(levels, count):
    scores = torch.randint(levels, (11,), generator=torch.Generator().manual_seed(levels)).float()
    assert top_k(scores, count).tolist() == best(scores.tolist(), count)


def test_top_k_gives_ties_to_the_lowest_index():
    # torch.topk gives 19, 22, 21 ... here.
    assert top_k(torch.ones(30), 7).tolist() == list(range(7))
    assert top_k(torch.tensor([0.2, 0.2, 0.2, 0.15]), 2).tolist() == [0, 1]
    assert top_k(torch.ones(5000), 2500).tolist() == list(range(2500))


def test_top_k_of_many_rows_is_top_k_of_each():
    scores = normal(2, 3, 50).bfloat16()
    found = top_k(scores, 9)
    assert found.shape == (2, 3, 9)
    assert found.dtype == torch.int64
    for i in range(2):
        for j in range(3):
            assert found[i, j].tolist() == best(scores[i, j].tolist(), 9)


@pytest.mark.parametrize(("count", "given"), [(-1, 1), (0, 1), (1, 1), (4, 4), (5, 4), (99, 4)])
def test_counts_are_clamped(count, given):
    assert len(top_k(normal(4), count)) == given
    assert len(farthest_point(normal(4, 3), count)) == given


def test_top_k_takes_strided_integer_and_infinite_scores():
    strided = normal(40)[::4]
    assert top_k(strided, 3).tolist() == best(strided.tolist(), 3)
    assert top_k(torch.tensor([3, 1, 2]), 2).tolist() == [0, 2]
    assert top_k(torch.tensor([-torch.inf, 0.0, torch.inf, -torch.inf]), 3).tolist() == [0, 1, 2]


def test_top_k_compares_in_float32():
    # 1 + 1e-12 and 1 are one float32 number.
    assert top_k(torch.tensor([1.0, 1 + 1e-12], dtype=torch.float64), 1).tolist() == [0]


def test_top_k_refuses_nan_and_nothing():
    with pytest.raises(VLMCompressError, match="1 of 3 scores are NaN"):
        top_k(torch.tensor([1.0, torch.nan, 2.0]), 1)
    with pytest.raises(VLMCompressError, match="at least one"):
        top_k(torch.empty(2, 0), 1)


@PATHS
def test_hand_example_of_divprune(max_bytes):
    rows = rows_at(0, 10, 40, 100, 170, 205)
    picked = farthest_point(rows, 6, order="picked", max_bytes=max_bytes)
    assert picked.tolist() == [3, 5, 0, 2, 4, 1]
    assert farthest_point(rows, 3, max_bytes=max_bytes).tolist() == [0, 3, 5]


@PATHS
@pytest.mark.parametrize("tokens", range(1, 11))
@pytest.mark.parametrize("seed", range(3))
def test_farthest_point_follows_its_definition(tokens, seed, max_bytes):
    rows = normal(tokens, 3, seed=seed)
    for count in range(1, tokens + 1):
        expected = diverse(rows.double().tolist(), count)
        picked = farthest_point(rows, count, order="picked", max_bytes=max_bytes)
        assert picked.tolist() == expected
        assert farthest_point(rows, count, max_bytes=max_bytes).tolist() == sorted(expected)


@PATHS
def test_length_does_not_matter_direction_does(max_bytes):
    rows = normal(40, 8)
    stretched = rows * torch.arange(1, 41)[:, None].float().exp2().clamp(max=2**20)
    expected = farthest_point(rows, 9, order="picked", max_bytes=max_bytes)
    found = farthest_point(stretched, 9, order="picked", max_bytes=max_bytes)
    assert torch.equal(found, expected)
    other = farthest_point(normal(40, 8, seed=1), 9, order="picked", max_bytes=max_bytes)
    assert not torch.equal(other, expected)


@PATHS
def test_repeated_rows_never_repeat_an_index(max_bytes):
    rows = torch.eye(3).repeat(4, 1)
    for count in range(1, 13):
        picked = farthest_point(rows, count, order="picked", max_bytes=max_bytes).tolist()
        assert len(set(picked)) == count
        # Everything ties: the lowest index of each direction first, then the lowest left.
        assert picked == list(range(count))


@PATHS
def test_the_first_of_two_mutual_neighbours_is_the_seed(max_bytes):
    # Rows 2 and 5 are each other's nearest, and farther from all than the rest among themselves.
    for seed in range(20):
        near = normal(1, 64, seed=seed) + 0.01 * normal(4, 64, seed=seed + 100)
        pair = -near[:1] + 0.5 * normal(2, 64, seed=seed + 200)
        rows = torch.cat([near[:2], pair[:1], near[2:], pair[1:]])
        assert farthest_point(rows, 1, max_bytes=max_bytes).tolist() == [2]


@PATHS
def test_zero_rows_wait_until_the_end(max_bytes):
    rows = torch.zeros(7, 3)
    rows[[1, 3, 4]] = normal(3, 3)
    alone = farthest_point(rows[[1, 3, 4]], 3, order="picked", max_bytes=max_bytes)
    expected = [[1, 3, 4][i] for i in alone] + [0, 2, 5, 6]
    assert farthest_point(rows, 7, order="picked", max_bytes=max_bytes).tolist() == expected
    nothing = farthest_point(torch.zeros(4, 3), 4, order="picked", max_bytes=max_bytes)
    assert nothing.tolist() == [0, 1, 2, 3]


@PATHS
def test_zero_rows_are_nobodys_neighbours(max_bytes):
    # Three rows with cosines -0.2, -0.5 and -0.6: the last is 1.5 from its nearest, the others 1.2.
    cosines = torch.tensor([[1, -0.2, -0.5], [-0.2, 1, -0.6], [-0.5, -0.6, 1]])
    rows = torch.zeros(6, 3)
    rows[[1, 2, 4]] = torch.linalg.cholesky(cosines)
    assert farthest_point(rows, 1, max_bytes=max_bytes).tolist() == [4]


@PATHS
def test_a_batch_equals_its_members(max_bytes):
    features = normal(2, 3, 50, 33)
    features[1, 2, 7] = 0
    found = farthest_point(features, 20, order="picked", max_bytes=max_bytes)
    assert found.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            single = farthest_point(features[i, j], 20, order="picked", max_bytes=max_bytes)
            assert torch.equal(found[i, j], single)


def test_a_batch_is_worked_off_in_pieces_that_fit():
    features = normal(5, 30, 16)
    expected = farthest_point(features, 8, order="picked")
    two_images = 2 * 4 * 30 * 30
    found = farthest_point(features, 8, order="picked", max_bytes=two_images)
    assert torch.equal(found, expected)
    assert farthest_point(features[:0], 8).shape == (0, 8)


@pytest.mark.parametrize("seed", range(3))
def test_with_and_without_the_matrix_keep_the_same_tokens(seed, monkeypatch):
    features = normal(300, 64, seed=seed) + 2 * normal(1, 64)
    expected = farthest_point(features, 60)
    monkeypatch.setattr(select, "_dense", None)
    assert torch.equal(farthest_point(features, 60, max_bytes=4 * 300**2 - 1), expected)
    with pytest.raises(TypeError):
        farthest_point(features, 60)


@PATHS
def test_half_precision_picks_are_those_of_the_same_numbers_in_float32(max_bytes):
    features = (normal(120, 48) + 3 * normal(1, 48)).bfloat16()
    expected = farthest_point(features.float(), 30, order="picked", max_bytes=max_bytes)
    found = farthest_point(features, 30, order="picked", max_bytes=max_bytes)
    assert torch.equal(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = farthest_point(features.float(), 30, order="picked", max_bytes=max_bytes)
    assert torch.equal(found, expected)


def exact_picks(rows, count):
    """The definition for rows of 1 and -1, whose products are whole numbers."""
    products = rows.long() @ rows.long().T
    others = products - 1000 * torch.eye(len(rows), dtype=torch.long)
    picked = [int(others.amax(1).argmin())]
    while len(picked) < count:
        near = products[picked].amax(0)
        near[picked] = 1000
        picked.append(int(near.argmin()))
    return picked


@pytest.mark.parametrize("width", [4, 16, 64])
@pytest.mark.parametrize("tokens", [65, 200, 600, 1100])
def test_many_exact_ties_go_to_the_lowest_index(tokens, width):
    """Long enough for every block, refill and row that is left alone for a while."""
    rows = normal(tokens, width, seed=width).sign()
    count = tokens // 3
    expected = exact_picks(rows, count)
    for path in (select._sparse, lambda rows, count: select._dense(rows[None], count)[0]):
        assert path(rows, count).tolist() == expected
    assert expected != sorted(expected)


def test_rows_that_cannot_be_picked_are_left_alone(monkeypatch):
    """Near copies beside each other rule out all but the few rows without one."""
    rows = normal(500, 64).repeat_interleave(4, 0) + 0.01 * normal(2000, 64, seed=1)
    rows[::400] = normal(5, 64, seed=2)
    compared, compare = [], farthest._compare

    def counted(unit, rows, near, limit):
        compared.append(len(rows))
        return compare(unit, rows, near, limit)

    monkeypatch.setattr(farthest, "_compare", counted)
    found = select._sparse(rows, 40)
    assert torch.equal(found, select._dense(rows[None], 40)[0])
    assert sum(compared) <= 2 * 128
    # Copies far apart are found by what was compared with them.
    compared.clear()
    select._sparse(rows[torch.randperm(2000, generator=torch.Generator().manual_seed(0))], 1)
    assert sum(compared) <= 5 * 128
    # Where all are equal the first one is enough.
    compared.clear()
    assert select._sparse(torch.ones(2000, 4), 3).tolist() == [0, 1, 2]
    assert len(compared) == 1


def test_zeros_wait_on_the_long_way_too():
    rows = normal(900, 16)
    rows[::3] = 0
    found = select._sparse(rows, 700).tolist()
    assert found == select._dense(rows[None], 700)[0].tolist()
    assert found[600:] == list(range(0, 300, 3))


def test_gradients_and_strides_are_no_obstacle():
    features = normal(16, 40).T.requires_grad_()
    expected = farthest_point(features.detach().contiguous(), 5)
    found = farthest_point(features, 5)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@PATHS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30], ids=["nan", "inf", "overflow"])
def test_rows_that_are_no_direction_are_refused(bad, max_bytes):
    features = normal(6, 4)
    features[2, 1] = bad
    with pytest.raises(VLMCompressError, match="1 of 6 rows"):
        farthest_point(features, 2, max_bytes=max_bytes)
    with pytest.raises(VLMCompressError, match="at least one row"):
        farthest_point(torch.empty(0, 4), 2, max_bytes=max_bytes)
