"""Which separators go with their rows, and how often the device is asked for it."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.patches.sequence.separators import Closing, Separators, close


class Counting(Checks):
    """Counts how often it is asked, and for how many values."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def read(self, values):
        self.asked.append(len(values))
        return super().read(values)


def closing(kept, rows=((0, 3), (3, 6)), tokens=6):
    """An image of `tokens` tokens in columns 0 to 5, separators behind them."""
    index = torch.tensor(kept, dtype=torch.long)
    at = torch.arange(tokens, tokens + len(rows))
    keep = torch.ones(tokens + len(rows), dtype=torch.bool)
    separators = Separators(at, torch.tensor(rows).view(-1, 2))
    return Closing(keep, torch.arange(tokens), index, index, separators, tokens)


@pytest.mark.parametrize(
    ("kept", "stay", "asked"),
    [
        ([0, 5], [True, True], 1),
        ([1, 2], [True, False], 1),
        ([3, 4, 5], [False, True], 1),
        ([], [False, False], 1),
        ([0, 1, 2, 3], [True, True], 0),  # three tokens a row: four are in both
        ([0, 1, 2, 3, 4, 5], [True, True], 0),
    ],
)
def test_rows_that_lose_all_tokens_lose_their_separator(kept, stay, asked):
    one, checks = closing(kept), Counting()
    ((closed, left),) = close([one], checks)
    assert one.keep.tolist() == [n in kept for n in range(6)] + stay
    assert closed == 6 - len(kept) + stay.count(False)
    assert left.at.tolist() == [6 + n for n in range(2) if stay[n]]
    assert left.rows.tolist() == [[3 * n, 3 * n + 3] for n in range(2) if stay[n]]
    assert len(checks.asked) == asked


def test_all_images_are_asked_for_at_once():
    checks = Counting()
    several = [closing([0]), closing([0, 1, 2, 3]), closing([5]), closing([2], rows=())]
    found = close(several, checks)
    assert [len(left) for _, left in found] == [1, 2, 1, 0]
    assert checks.asked == [2]


def test_a_separator_of_all_tokens_stays_with_any_of_them():
    checks = Counting()
    assert [len(left) for _, left in close([closing([4], rows=((0, 6),))], checks)] == [1]
    assert checks.asked == []
