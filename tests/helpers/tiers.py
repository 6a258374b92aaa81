"""Which sets of parameters run by default, and which wait for `pytest --full`.

The tests themselves are written over the whole product of their axes. Three markers say what is
enough for a run of minutes:

- `slow`: the test takes more than three seconds, so that it is left to `--full`.
- `pairs(**only)`: every pair of values of two axes is met, instead of every combination. Where an
  axis is named, only the given values of it count.
- `rotating(axis, by, count, **only)`: every value of `by` meets `count` values of `axis`, spread
  over all of them; the next value of `by` meets those before these, so that all have their turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

Values = Mapping[str, Hashable]
"""Axis -> value, or what tells it apart, of one set of parameters."""


def by_default(items: Iterable[Any]) -> list[Any]:
    """The items that run without `--full`, in order."""
    left = [item for item in items if item.get_closest_marker("slow") is None]
    tests: dict[Any, list[Any]] = defaultdict(list)
    for item in left:
        tests[getattr(item, "function", item)].append(item)
    taken = {id(item) for test in tests.values() for item in _enough(test)}
    return [item for item in left if id(item) in taken]


def share(items: Sequence[Any], text: str) -> Sequence[Any]:
    """Share `i/n` of the items, each nth one, so that all shares take about as long."""
    number, shares = (int(part) for part in text.split("/"))
    if not 1 <= number <= shares:
        raise ValueError(f"--shard {text}: give i/n with i from 1 to n")
    return items[number - 1 :: shares]


def _enough(test: list[Any]) -> list[Any]:
    """The sets of parameters of one test function that its markers ask for."""
    if not hasattr(test[0], "callspec"):
        return test
    rotating, pairs = (test[0].get_closest_marker(name) for name in ("rotating", "pairs"))
    if rotating is not None:  # of one test, while `pairs` may be said of its whole file
        axis, by, count, only = _asked(**rotating.kwargs)
        test = [item for item in test if _counts(item.callspec.params, only)]
        chosen = rotation([_told_apart(item) for item in test], axis, by, count)
        return [test[place] for place in chosen]
    if pairs is not None:
        test = [item for item in test if _counts(item.callspec.params, pairs.kwargs)]
        return [test[place] for place in covering([_told_apart(item) for item in test])]
    return test


def _asked(axis: str, by: str, count: int, **only: Any) -> tuple[str, str, int, Any]:
    return axis, by, count, only


def _told_apart(item: Any) -> Values:
    """The values of an item by identity: some have no hash, and all sets share the same objects."""
    return {axis: id(value) for axis, value in item.callspec.params.items()}


def _counts(values: Values, only: Mapping[str, Collection[Hashable]]) -> bool:
    return all(values[axis] in wanted for axis, wanted in only.items() if axis in values)


def covering(rows: Sequence[Values]) -> list[int]:
    """Few rows that together hold every pair of values that any row holds.

    Greedy: the row with the most pairs that are still missing comes next, the first of several.
    With a single axis these are all of its values.
    """
    axes = sorted(rows[0]) if rows else []
    groups = list(combinations(axes, min(2, len(axes))))
    held = [{(group, tuple(row[axis] for axis in group)) for group in groups} for row in rows]
    missing = set().union(*held)
    taken: list[int] = []
    while missing:
        best = max(range(len(rows)), key=lambda place: len(held[place] & missing))
        missing -= held[best]
        taken.append(best)
    return sorted(taken)


def rotation(rows: Sequence[Values], axis: str, by: str, count: int) -> list[int]:
    """The rows in which each value of `by` meets `count` values of `axis`, spread and in turn."""
    places = {value: place for place, value in enumerate(dict.fromkeys(r[axis] for r in rows))}
    turns = {value: turn for turn, value in enumerate(dict.fromkeys(row[by] for row in rows))}
    spread = {number * len(places) // count for number in range(count)}
    return [
        number
        for number, row in enumerate(rows)
        if (places[row[axis]] + turns[row[by]]) % len(places) in spread
    ]
