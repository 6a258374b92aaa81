"""The largest share of the visual tokens that a cost allows."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import pairwise

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import BudgetError

_AHEAD = 8
"""Shares looked at beyond the first that costs too much: rounding makes costs rise unevenly."""


def different_shares(sizes: Collection[int]) -> list[float]:
    """Shares in percent, ascending to 100: one for each way in which one rounds to whole tokens.

    Args:
        sizes: tokens of the images that it is a share of.
    """
    steps = sorted({(2 * k + 1) / (2 * size) for size in set(sizes) for k in range(size)})
    return [*(50 * (low + high) for low, high in pairwise(steps)), 100.0]


def largest_share(
    cost: Callable[[float], float], shares: Sequence[float], budget: Budget, name: str
) -> tuple[float, float]:
    """The largest share that is within a budget, and what it costs.

    Args:
        cost: of a share, in the unit of the budget, falling with it but for rounding; raises
            BudgetError for a share that is out of the pipeline's reach.
        shares: to choose from, ascending.
        budget: a cost.
        name: of the pipeline, for messages.

    Raises:
        BudgetError: the smallest share in reach costs more; says how much.
    """
    dearest = cost(shares[-1])  # where not even this is in reach, the error is the user's
    if dearest <= budget.amount:
        return shares[-1], dearest

    @cache
    def at(place: int) -> float:
        """-inf where it is out of reach, so that costs rise from the first place on."""
        try:
            return cost(shares[place])
        except BudgetError:
            return -math.inf

    places = range(len(shares))
    first = bisect_left(places, True, key=lambda place: at(place) > -math.inf)
    after = bisect_right(places, budget.amount, lo=first, key=at)
    near = places[max(first, after - 1) : after + _AHEAD]
    within = [place for place in near if at(place) <= budget.amount]
    if not within:
        least = f"{math.ceil(at(first) * 1000) / 1000:g}"
        raise BudgetError(
            f"budget {budget} is out of reach: {name} costs {least} {budget.unit} or more on this "
            f"prompt; give {least} {budget.unit} or more, or combine it with another method"
        )
    return shares[within[-1]], at(within[-1])
