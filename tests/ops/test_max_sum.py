"""max_sum against its definition, and the directions that it compares."""

import math

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import similarity
from vlmcompress.ops.select import farthest_point, max_sum
from vlmcompress.ops.similarity import cosines, self_cosines, unit_rows

# A limit of 0 bytes forces the path without a matrix.
PATHS = pytest.mark.parametrize("max_bytes", [2**28, 0], ids=["matrix", "rows"])


def rows_at(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(rows, count, pivot):
    """The definition, in Python floats: the smallest summed cosine to all picks."""
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]

    def similar(i, j):
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True))

    picked = [pivot]
    while len(picked) < count:
        left = [i for i in range(len(rows)) if i not in picked]
        picked.append(min(left, key=lambda i: (sum(similar(i, p) for p in picked), i)))
    return picked


@PATHS
def test_hand_example_of_todre(max_bytes):
    rows = rows_at(0, 10, 40, 100, 170, 205)
    picked = max_sum(rows, 6, 0, order="picked", max_bytes=max_bytes)
    assert picked.tolist() == [0, 4, 5, 1, 3, 2]
    assert max_sum(rows, 3, 0, max_bytes=max_bytes).tolist() == [0, 4, 5]
    # Max-min diversity goes another way.
    assert farthest_point(rows, 6, order="picked").tolist() == [3, 5, 0, 2, 4, 1]


@PATHS
@pytest.mark.parametrize("seed", range(4))
def test_max_sum_follows_its_definition(seed, max_bytes):
    for count in range(1, 11):
        rows = normal(count, 3, seed=seed)
        expected = spread(rows.double().tolist(), count, count // 2)
        for some in range(1, count + 1):
            found = max_sum(rows, some, count // 2, order="picked", max_bytes=max_bytes)
            assert found.tolist() == expected[:some]


@PATHS
def test_rows_of_zeros_wait_until_the_end_unless_they_are_the_pivot(max_bytes):
    rows = torch.zeros(6, 3)
    rows[[1, 3, 4]] = normal(3, 3)
    found = max_sum(rows, 6, 3, order="picked", max_bytes=max_bytes).tolist()
    assert found[0] == 3
    assert set(found[:3]) == {1, 3, 4}
    assert found[3:] == [0, 2, 5]
    found = max_sum(rows, 6, 2, order="picked", max_bytes=max_bytes).tolist()
    # All are equally far from zeros: the lowest index that has a direction.
    assert found[:2] == [2, 1]
    assert found[4:] == [0, 5]


@PATHS
def test_repeated_rows_never_repeat_an_index(max_bytes):
    rows = torch.eye(3).repeat(4, 1)
    for count in range(1, 13):
        picked = max_sum(rows, count, 4, order="picked", max_bytes=max_bytes).tolist()
        assert len(set(picked)) == count
    assert picked[:3] == [4, 0, 2]
    assert max_sum(torch.zeros(4, 2), 4, 1, order="picked").tolist() == [1, 0, 2, 3]


def test_length_and_precision_do_not_matter():
    rows = (normal(60, 16) + 2 * normal(1, 16)).bfloat16()
    expected = max_sum(rows.float(), 20, 5, order="picked")
    assert torch.equal(max_sum(rows, 20, 5, order="picked"), expected)
    stretched = rows.float() * torch.arange(1, 61)[:, None].exp2().clamp(max=2**20)
    assert torch.equal(max_sum(stretched, 20, 5, order="picked"), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(max_sum(rows.float(), 20, 5, order="picked"), expected)
    assert not torch.equal(max_sum(normal(60, 16, seed=1), 20, 5, order="picked"), expected)


def test_beyond_its_memory_it_works_without_a_matrix(monkeypatch):
    rows = normal(50, 8)
    expected = max_sum(rows, 20, 3, order="picked")
    monkeypatch.setattr(similarity, "self_cosines", None)
    assert torch.equal(max_sum(rows, 20, 3, order="picked", max_bytes=4 * 50 * 50 - 1), expected)
    # Three rows are computed faster than all.
    assert torch.equal(max_sum(rows, 3, 3, order="picked"), expected[:3])
    with pytest.raises(TypeError):
        max_sum(rows, 20, 3, max_bytes=4 * 50 * 50)


def test_max_sum_refuses_what_it_cannot_use():
    with pytest.raises(VLMCompressError, match="pivot among its 4 rows, got 4"):
        max_sum(normal(4, 3), 2, 4)
    with pytest.raises(VLMCompressError, match="pivot among its 0 rows"):
        max_sum(torch.empty(0, 3), 2, 0)
    rows = normal(4, 3)
    rows[1, 1] = torch.nan
    with pytest.raises(VLMCompressError, match="1 of 4 rows"):
        max_sum(rows, 2, 0)


def test_cosines_are_float32_and_0_for_rows_of_zeros():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(cosines(rows, torch.eye(2)), expected)
    assert torch.equal(unit_rows(rows)[1], torch.zeros(2))
    many = normal(2, 9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosines(many, many[:, :4])
    assert found.dtype == torch.float32
    expected = torch.nn.functional.cosine_similarity(many[:, :, None], many[:, None, :4], dim=-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tokens", [1, 8, 9, 30])
def test_half_a_product_is_the_whole_product(tokens, monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK", 8)
    unit = unit_rows(normal(tokens, 70))
    found = self_cosines(unit)
    torch.testing.assert_close(found, unit @ unit.T)
    assert torch.equal(found, found.T)


def test_what_is_given_stays_as_it_is():
    for dtype in (torch.float32, torch.bfloat16):
        rows = normal(5, 3).to(dtype)
        before = rows.clone()
        unit_rows(rows)
        assert torch.equal(rows, before)


def test_directions_say_what_is_not_finite():
    rows = normal(4, 3)
    rows[2] = 1e30
    with pytest.raises(VLMCompressError, match="keys must be finite: 1 of 4 rows"):
        unit_rows(rows, "keys")
