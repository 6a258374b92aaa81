"""dpp_map and facility_location against their definitions in Python floats."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import coverage
from vlmcompress.ops.coverage import dpp_map, facility_location, facility_location_of


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def determinant(matrix):
    """Of a list of rows, by elimination with pivots."""
    rows, product = [list(row) for row in matrix], 1.0
    for i in range(len(rows)):
        best = max(range(i, len(rows)), key=lambda r: abs(rows[r][i]))
        if rows[best][i] == 0:
            return 0.0
        if best != i:
            rows[i], rows[best], product = rows[best], rows[i], -product
        product *= rows[i][i]
        for below in rows[i + 1 :]:
            factor = below[i] / rows[i][i]
            for column in range(i, len(rows)):
                below[column] -= factor * rows[i][column]
    return product


def most_probable(features, quality, count):
    """Greedy determinant of the kernel: that of every candidate set, from scratch."""
    unit = [[x / math.hypot(*row) for x in row] for row in features]
    everyone = range(len(unit))
    kernel = [[quality[i] * quality[j] * dot(unit[i], unit[j]) for j in everyone] for i in everyone]
    picked = []
    for _ in range(count):
        left = [i for i in everyone if i not in picked]
        sets = {i: [*picked, i] for i in left}
        gains = {i: determinant([[kernel[a][b] for b in s] for a in s]) for i, s in sets.items()}
        picked.append(max(left, key=lambda i: (gains[i], -i)))
    return picked


def best_cover(similarity, weights, count):
    """Greedy facility location: the coverage of every candidate set, from scratch."""
    everyone = range(len(similarity[0]))

    def coverage(picks):
        return math.fsum(max([0, *(row[p] for p in picks)]) for row in similarity)

    picked = []
    for _ in range(count):
        left = [i for i in everyone if i not in picked]
        rise = {i: weights[i] * (coverage([*picked, i]) - coverage(picked)) for i in left}
        picked.append(max(left, key=lambda i: (rise[i], -i)))
    return picked


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tokens", [1, 2, 5, 10])
def test_dpp_map_is_the_greedy_determinant(tokens, seed):
    features, quality = normal(tokens, 12, seed=seed), uniform(tokens, seed=seed) + 0.1
    picked = dpp_map(features, tokens, quality, order="picked").tolist()
    assert picked == most_probable(features.tolist(), quality.tolist(), tokens)
    assert dpp_map(features, tokens - 1, quality).tolist() == sorted(picked[: max(1, tokens - 1)])


def test_dpp_map_hand_example():
    """Squared sines with the first pick, 0 degrees: 1/4, 3/4, 1. Times q^2: .25, .48, .36."""
    angles = torch.tensor([0.0, 30, 60, 90]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)
    quality = torch.tensor([2.0, 1, 0.8, 0.6])
    assert dpp_map(features, 2, quality, order="picked").tolist() == [0, 2]
    assert dpp_map(features, 2, order="picked").tolist() == [0, 3]
    # Only the size of a quality counts.
    assert dpp_map(features, 2, -quality, order="picked").tolist() == [0, 2]


def test_dpp_map_fills_up_with_the_lowest_indices_once_the_span_is_full():
    features = normal(40, 6, seed=1)
    picked = dpp_map(features, 40, uniform(40) + 0.1, order="picked").tolist()
    assert picked[6:] == [i for i in range(40) if i not in picked[:6]]
    # Near the end of a larger space rounding must not pass for a direction.
    picked = dpp_map(normal(300, 64, seed=2), 200, order="picked").tolist()
    assert picked[64:] == [i for i in range(300) if i not in picked[:64]][:136]


@pytest.mark.parametrize(
    ("features", "quality", "picks"),
    [
        (torch.ones(4, 3), None, [0, 1, 2, 3]),
        (torch.zeros(3, 2), None, [0, 1, 2]),
        (torch.tensor([[0.0, 0], [1, 0], [2, 0], [0, 3]]), None, [1, 3, 0, 2]),
        (torch.eye(3), torch.zeros(3), [0, 1, 2]),
        (torch.eye(3), torch.tensor([1e-30, 3e-30, 2e-30]), [1, 2, 0]),
        (1e-20 * torch.eye(2), torch.tensor([1.0, 2]), [1, 0]),
    ],
    ids=["constant", "zeros", "duplicates", "no quality", "tiny qualities", "tiny rows"],
)
def test_dpp_map_of_degenerate_rows(features, quality, picks):
    assert dpp_map(features, len(features), quality, order="picked").tolist() == picks


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 7), (10, 10), (13, 5)])
def test_facility_location_is_greedy_coverage(rows, tokens, seed):
    similarity, weights = normal(rows, tokens, seed=seed), uniform(tokens, seed=seed)
    # Some columns are negative throughout and some rows are covered by nothing.
    similarity[:, 0] = -1
    for given, plain in [(weights, weights.tolist()), (None, [1.0] * tokens)]:
        picked = facility_location(similarity, tokens, given, order="picked").tolist()
        assert picked == best_cover(similarity.tolist(), plain, tokens)
    assert facility_location(similarity, 2).tolist() == sorted(picked[:2])


def test_facility_location_hand_example():
    """Column 0 covers 1.2, 1 covers 1.1, 2 covers 1; after 0 they add .3 and .8."""
    similarity = torch.tensor([[0.8, 0.6, 0], [0.2, 0.5, 0], [0.2, 0, 1]])
    assert facility_location(similarity, 3, order="picked").tolist() == [0, 2, 1]
    assert facility_location(similarity, 2).tolist() == [0, 2]
    assert facility_location(similarity, 2, torch.tensor([1.0, 2, 1]), order="picked").tolist() == [
        1,
        2,
    ]


@pytest.mark.parametrize("max_bytes", [0, 100, 1000])
def test_facility_location_in_blocks_picks_the_same(max_bytes):
    similarity = uniform(50, 9, seed=3)
    whole = facility_location(similarity, 5, order="picked")
    assert torch.equal(facility_location(similarity, 5, order="picked", max_bytes=max_bytes), whole)


@pytest.mark.parametrize("some", [1, 3, 64])
@pytest.mark.parametrize("seed", range(3))
def test_gains_put_off_change_no_pick(seed, some, monkeypatch):
    """Whole numbers tie often, and no sum of them rounds."""
    monkeypatch.setattr(coverage, "_SOME", some)
    similarity = torch.randint(-2, 5, (60, 90), generator=torch.Generator().manual_seed(seed))
    weights = torch.randint(3, (90,), generator=torch.Generator().manual_seed(seed)).float()
    for given, plain in [(weights, weights.tolist()), (None, [1.0] * 90)]:
        expected = best_cover(similarity.tolist(), plain, 30)
        assert facility_location(similarity, 30, given, order="picked").tolist() == expected
        monkeypatch.setattr(coverage, "_SMALL", 0)
        for max_bytes in (0, 2**20):
            found = facility_location(similarity, 30, given, order="picked", max_bytes=max_bytes)
            assert found.tolist() == expected
        monkeypatch.undo()
    assert expected != sorted(expected)


def test_columns_made_when_asked_for():
    unit = torch.nn.functional.normalize(normal(80, 16), dim=-1)
    weights, asked = uniform(80), []

    def columns(index):
        asked.append(len(index))
        return unit[index] @ unit.T

    expected = facility_location(unit @ unit.T, 20, weights, order="picked")
    found = facility_location_of(columns, 80, 20, weights, order="picked", max_bytes=4 * 80 * 9)
    assert torch.equal(found, expected)
    assert max(asked) == 9
    assert torch.equal(facility_location_of(columns, 80, 20, weights), expected.sort().values)
    with pytest.raises(VLMCompressError, match="at least one token"):
        facility_location_of(columns, 0, 1)
    with pytest.raises(VLMCompressError, match="weights must be 0 or more"):
        facility_location_of(columns, 80, 1, -weights)


def test_dpp_map_with_and_without_a_matrix():
    features = normal(50, 20)
    expected = dpp_map(features, 15, uniform(50), order="picked")
    assert torch.equal(dpp_map(features, 15, uniform(50), order="picked", max_bytes=0), expected)


def test_equal_columns_go_to_the_lowest_index_and_never_twice():
    assert facility_location(torch.ones(3, 4), 4, order="picked").tolist() == [0, 1, 2, 3]
    assert facility_location(-torch.ones(3, 4), 3).tolist() == [0, 1, 2]
    assert facility_location(torch.eye(4), 2, torch.zeros(4)).tolist() == [0, 1]


@pytest.mark.parametrize("count", [-3, 0, 1, 7, 8, 99])
def test_counts_are_clamped(count):
    features, expected = normal(7, 4), max(1, min(count, 7))
    assert len(set(dpp_map(features, count).tolist())) == expected
    assert len(set(facility_location(features.T, count).tolist())) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_picks_what_its_float32_cast_picks(dtype):
    rows = normal(60, 16, seed=5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        halves = [dpp_map(rows, 12, order="picked"), facility_location(rows, 12, order="picked")]
    cast = rows.float()
    assert torch.equal(halves[0], dpp_map(cast, 12, order="picked"))
    assert torch.equal(halves[1], facility_location(cast, 12, order="picked"))


def test_inputs_may_need_gradients_and_stay_as_they_are():
    rows = normal(6, 6).requires_grad_()
    before = rows.detach().clone()
    assert not dpp_map(rows, 3, rows[0]).requires_grad
    assert not facility_location(rows, 3, rows[0].abs()).requires_grad
    assert torch.equal(rows, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_one_clear_error(value):
    rows = normal(5, 5)
    rows[2, 3] = value
    vector = rows[2].abs()
    with pytest.raises(VLMCompressError, match="1 of 5 rows are NaN"):
        dpp_map(rows, 2)
    with pytest.raises(VLMCompressError, match="similarities must be finite: 1 of 25"):
        facility_location(rows, 2)
    with pytest.raises(VLMCompressError, match=r"quality must be one finite .* with 1 not finite"):
        dpp_map(torch.eye(5), 2, vector)
    with pytest.raises(VLMCompressError, match=r"weights must be one finite .* with 1 not finite"):
        facility_location(torch.eye(5), 2, vector)


def test_misfits_are_refused():
    with pytest.raises(VLMCompressError, match="dpp_map needs at least one token"):
        dpp_map(torch.zeros(0, 3), 1)
    with pytest.raises(VLMCompressError, match="facility_location needs at least one token"):
        facility_location(torch.zeros(3, 0), 1)
    with pytest.raises(VLMCompressError, match=r"each of 3 tokens, got shape \(2,\)"):
        dpp_map(torch.eye(3), 1, torch.ones(2))
    with pytest.raises(VLMCompressError, match="weights must be 0 or more, got -1"):
        facility_location(torch.eye(2), 1, torch.tensor([1.0, -1]))


@pytest.mark.parametrize("tokens", [30, 1100])
def test_a_symmetric_matrix_is_not_copied(tokens, monkeypatch):
    """Few tokens, of which all gains are worked out for every pick, and many."""
    similarity = normal(tokens, tokens)
    similarity = similarity + similarity.T
    expected = facility_location(similarity, 9, order="picked")
    copies = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda x: copies.append(x.shape) or contiguous(x)
    )
    found = facility_location(similarity, 9, order="picked", symmetric=True)
    assert torch.equal(found, expected)
    assert (tokens, tokens) not in copies
    facility_location(similarity, 9)
    assert ((tokens, tokens) in copies) == (tokens > 1024)
