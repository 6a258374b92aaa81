"""Rows of a file of figures that several runs fill: what stays, and what each was measured on.

A file says once on what its rows were measured. A row of another run says under "measured" what
differs there, so that a few rows can be measured again and the page still tells the truth.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Key = Callable[[Mapping[str, Any]], object]


def measured_on(row: Mapping[str, Any], own: Mapping[str, Any]) -> Row:
    """What a row was measured on.

    Args:
        row: of the file.
        own: what the file says of all its rows.
    """
    return {**own, **row.get("measured", {})}


def stamped(row: Mapping[str, Any], now: Mapping[str, Any], own: Mapping[str, Any]) -> Row:
    """The row with what `now` has otherwise than `own`; without "measured" where nothing."""
    plain = {name: value for name, value in row.items() if name != "measured"}
    other = {name: value for name, value in now.items() if own.get(name) != value}
    return plain | ({"measured": other} if other else {})


def joined(
    own: Mapping[str, Any] | None,
    known: Sequence[Row],
    new: Sequence[Row],
    now: Mapping[str, Any],
    key: Key,
) -> tuple[Row, list[Row]]:
    """What the file says of all its rows, and the rows.

    Args:
        own: what the file says so far; None without a file.
        known: rows of the file.
        new: rows of this run, without "measured"; each replaces the one of the same key.
        now: what they were measured on.
        key: what is measured once.

    Returns:
        `own` while a row is left that was measured so, else what the last row was measured on.
    """
    measured = {key(row) for row in new}
    before = dict(now if own is None else own)
    rows = [row for row in known if key(row) not in measured]
    rows += [stamped(row, now, before) for row in new]
    if not rows or any("measured" not in row for row in rows):
        return before, rows
    after = measured_on(rows[-1], before)
    return after, [stamped(row, measured_on(row, before), after) for row in rows]


def place(names: Sequence[str], name: str) -> int:
    """Where a name stands among those that are known, the unknown behind them."""
    return names.index(name) if name in names else len(names)
