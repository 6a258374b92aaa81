"""apportion against all ways to share out, even against its definition."""

import itertools
import random

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.apportion import apportion, even


def misses(shares, quotas):
    return sum((share - quota) ** 2 for share, quota in zip(shares, quotas, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_no_other_whole_numbers_are_nearer_to_the_quotas(seed):
    draw = random.Random(seed)
    parts = draw.randint(1, 4)
    least = draw.randint(0, 1)
    most = [draw.randint(max(1, least), 5) for _ in range(parts)]
    quotas = [draw.uniform(-1, 6) for _ in range(parts)]
    for total in range(parts * least, sum(most) + 1):
        shares = apportion(torch.tensor(quotas), total, torch.tensor(most), least=least)
        ways = itertools.product(*(range(least, high + 1) for high in most))
        best = min(misses(way, quotas) for way in ways if sum(way) == total)
        assert shares.sum() == total
        assert all(
            least <= share <= high for share, high in zip(shares.tolist(), most, strict=True)
        )
        assert misses(shares.tolist(), quotas) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("quotas", "total", "most", "least", "shares"),
    [
        ([2.5, 1.5, 1.0], 5, 9, 0, [3, 1, 1]),
        ([1.0, 1, 1], 2, 9, 0, [1, 1, 0]),
        ([7.0, 1, 1], 9, 5, 0, [5, 2, 2]),
        ([4.0, 0, 0], 4, 9, 1, [2, 1, 1]),
        ([0.5, 0.5], 0, 3, 0, [0, 0]),
        ([0.5, 0.5], 6, 3, 0, [3, 3]),
        ([1 / 3, 4 / 3], 2, 9, 0, [1, 1]),
    ],
    ids=[
        "largest rest",
        "ties",
        "a full part",
        "at least one",
        "nothing",
        "all",
        "ties but for ulp",
    ],
)
def test_hand_examples(quotas, total, most, least, shares):
    limits = torch.full((len(quotas),), most)
    assert apportion(torch.tensor(quotas), total, limits, least=least).tolist() == shares


@pytest.mark.parametrize(("total", "least"), [(-1, 0), (7, 0), (1, 1)])
def test_totals_that_do_not_fit_are_refused(total, least):
    with pytest.raises(VLMCompressError, match=f"cannot share {total} out in 2 parts: .* to 6 fit"):
        apportion(torch.ones(2), total, torch.full((2,), 3), least=least)


def test_even_shares_differ_by_one_and_the_larger_are_spread():
    assert even(4, 8).tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert even(7, 3).tolist() == [2, 2, 3]
    for total, parts in itertools.product(range(20), range(1, 9)):
        shares = even(total, parts)
        assert shares.sum() == total
        assert shares.max() - shares.min() <= 1
