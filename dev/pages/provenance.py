"""What stands under a table of times: the machine, the versions and the command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dev.benchmarks.kept_rows import measured_on

Row = Mapping[str, Any]


def source(made: Row) -> str:
    """Device, versions, date and command as a sentence."""
    return f"{made['device']}, {threads(made)}; `{made['command']}`."


def others(own: Row, rows: Sequence[Row], told: Callable[[Row], str] = source) -> str:
    """A paragraph for each further run that measured rows: its methods, and on what.

    Args:
        own: what the file says of all its rows.
        rows: of the file.
        told: the sentence about a run; runs of which it says the same count as one.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(told(measured_on(row, own)), []).append(f"`{row['method']}`")
    found.pop(told(own), None)
    return "".join(
        f"\n\n{', '.join(dict.fromkeys(methods))}: {text}" for text, methods in found.items()
    )


def threads(made: Row) -> str:
    """Threads, versions and date."""
    versions: Iterable[tuple[str, str]] = made["versions"].items()
    known = ", ".join(
        f"{name} {number}" for name, number in versions if name in ("torch", "transformers")
    )
    return f"{made['threads']} threads, {known}, {made['date']}"


def marked(share: float, above: float = 0.01) -> str:
    """A share in percent, bold above a limit."""
    text = f"{100 * share:.2f} %"
    return f"**{text}**" if share > above else text
