"""Schedules of decoder methods that meet a budget: one cut, or the nearest of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vlmcompress.methods.base import mean_tokens
from vlmcompress.methods.checks import check_cuts, check_reachable


def one_cut(
    name: str, k: int, layers: int, tokens: int, budget: float | None, dropped: float = 0.0
) -> dict[int, int]:
    """{k: count} with the whole number nearest to the budget, {} where that keeps all.

    Args:
        name: of the method.
        k: its option for the first layer that runs on fewer tokens.
        layers: of the decoder.
        tokens: that enter the decoder.
        budget: mean over layers; None for the share `dropped`.
        dropped: share that the cut takes where there is no budget.

    Raises:
        BudgetError: the cut is outside the decoder, or the budget below k * tokens / layers.
    """
    check_cuts(name, [k], layers)
    if budget is None:
        keep = round(tokens * (1 - dropped))
    elif budget >= tokens:
        return {}
    else:
        check_reachable(name, k, layers, tokens, budget, earlier="k=1")
        keep = max(0, round((layers * budget - k * tokens) / (layers - k)))
    return {k: keep} if keep < tokens else {}


def falling(counts: Mapping[int, int], tokens: int) -> dict[int, int]:
    """The same schedule without cuts that change nothing."""
    schedule, before = {}, tokens
    for layer, count in sorted(counts.items()):
        if count < before:
            schedule[layer] = before = count
    return schedule


def nearest(
    family: Callable[[float], dict[int, int]],
    layers: int,
    tokens: int,
    budget: float,
    between: tuple[float, float] = (0.0, 1.0),
) -> dict[int, int]:
    """The schedule whose true mean over layers is nearest to the budget.

    Args:
        family: number -> schedule. The mean is a rising staircase of the number.
        layers: of the decoder.
        tokens: that enter the decoder.
        budget: mean over layers.
        between: bounds of the number.
    """
    low, high = between
    for _ in range(100):
        middle = (low + high) / 2
        if mean_tokens(layers, tokens, family(middle)) <= budget:
            low = middle
        else:
            high = middle
    sides = [family(low), family(high)]
    return min(sides, key=lambda side: abs(mean_tokens(layers, tokens, side) - budget))
