"""Amounts of memory as people write them."""

import pytest

from vlmcompress.budget.memory import bytes_of
from vlmcompress.errors import BudgetError


@pytest.mark.parametrize(
    ("given", "found"),
    [(7, 7), ("7", 7), (" 1000000 ", 10**6), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("3B", 3)],
)
def test_what_is_meant(given, found):
    assert bytes_of(given) == found


@pytest.mark.parametrize(
    "given", ["1.5", "", "GB", "0", "-1", "9" * 400, "9" * 400 + "GB", True, 1.5, None, [1]]
)
def test_what_is_no_amount(given):
    with pytest.raises(BudgetError, match="give bytes, or a text such as '2GB'") as refused:
        bytes_of(given)
    assert len(str(refused.value)) < 300
