"""Schedules of decoder methods that meet a budget: one cut, or the nearest of a family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from vlmcompress.errors import BudgetError
from vlmcompress.methods.contracts.decoder import mean_tokens


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
    """The schedule without the cuts that drop no token."""
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
    sides = _sides(family, layers, tokens, budget, between)
    return min(sides, key=lambda side: abs(mean_tokens(layers, tokens, side) - budget))


def _sides(
    family: Callable[[float], dict[int, int]],
    layers: int,
    tokens: int,
    budget: float,
    between: tuple[float, float],
) -> tuple[dict[int, int], dict[int, int]]:
    """The neighbouring steps of the staircase, within the budget and above it."""
    low, high = between
    for _ in range(100):
        middle = (low + high) / 2
        if mean_tokens(layers, tokens, family(middle)) <= budget:
            low = middle
        else:
            high = middle
    return family(low), family(high)


def largest_within(
    family: Callable[[float], dict[int, int]],
    layers: int,
    tokens: int,
    budget: float,
    between: tuple[float, float],
) -> dict[int, int] | None:
    """The schedule of the largest mean within the budget; None where the smallest is above it.

    Args:
        family, layers, tokens, budget, between: as for `nearest`.
    """
    low = _sides(family, layers, tokens, budget, between)[0]
    return low if mean_tokens(layers, tokens, low) <= budget + 1e-6 else None


def quarters(layers: int) -> tuple[int, ...]:
    """The layers at a quarter, half and three quarters of the depth, from layer 1 on."""
    return tuple(sorted({layers * j // 4 for j in (1, 2, 3)} - {0}))


def check_cuts(name: str, cuts: Sequence[int], layers: int) -> None:
    """Decoder layers before which tokens are dropped must be inside the decoder.

    Raises:
        BudgetError: a cut is outside 1..layers-1.
    """
    if layers < 2:
        raise BudgetError(f"{name} needs a decoder of at least 2 layers, got {layers}")
    if min(cuts) < 1 or max(cuts) >= layers:
        raise BudgetError(
            f"{name} must cut before one of the layers 1 to {layers - 1} of this decoder of "
            f"{layers} layers, got {', '.join(map(str, cuts))}"
        )


def check_reachable(
    name: str, first: int, layers: int, tokens: int, budget: float, earlier: str
) -> None:
    """All `tokens` enter the layers before the cut `first`, which bounds the mean from below.

    Args:
        name: of the method.
        first: the first layer that runs on fewer tokens.
        layers: of the decoder.
        tokens: that enter the decoder.
        budget: mean over layers that was asked for.
        earlier: how the user of this method moves the first cut to an earlier layer.

    Raises:
        BudgetError: `budget` is below that bound, or is not a number.
    """
    least = first * tokens / layers
    if budget >= least - 1e-6:
        return
    # Rounded up, so that the number in the message is itself accepted.
    shown = f"{math.ceil(least * 100 - 1e-4) / 100:g}"
    ways = [f"cut earlier with {earlier}"] if first > 1 else []
    ways.append(f'combine it with a projector-stage method, for example "divprune+{name}"')
    raise BudgetError(
        f"{name} with its first cut before layer {first} cannot keep fewer than "
        f"{first}*{tokens}/{layers} = {shown} visual tokens on average, got {budget:g}: "
        f"{' or '.join(ways)}"
    )
