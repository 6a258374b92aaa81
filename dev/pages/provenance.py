"""What stands under a table of times: the machine, the versions and the command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def source(made: Row) -> str:
    """Device, versions, date and command as a sentence."""
    return f"{made['device']}, {threads(made)}; `{made['command']}`."


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
