"""Tables that stay readable: too wide ones are cut into several, each with all of its headings."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_PIPED = 200
"""Columns where the output is no terminal and nobody says how wide it is."""
_LABEL = 32
"""Longest label on one line."""
_GAP = 2


def width() -> int:
    """Columns of the output: what COLUMNS says, else those of the terminal."""
    if os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty():
        return max(40, shutil.get_terminal_size().columns)
    return _PIPED


def console() -> Console:
    """For tables on stdout."""
    return Console(highlight=False, width=width())


def numbers(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print a table of labels and numbers, below each other in parts where it is too wide.

    Args:
        title: over the labels.
        heads: of the numbers.
        rows: a label and a cell for each head.
    """
    out = console()
    label = min(_LABEL, max([len(title), *(len(name) for name, _ in rows)]))
    widths = [
        max(len(head), *(len(cells[k]) for _, cells in rows), 0) for k, head in enumerate(heads)
    ]
    for part in _parts(widths, out.width - label):
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
        table.add_column(title, overflow="fold", width=label)
        for k in part:
            table.add_column(heads[k], justify="right", no_wrap=True)
        for name, cells in rows:
            table.add_row(name, *(cells[k] for k in part))
        out.print(table, markup=False)
        out.print()


def texts(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; where it is too wide a block for each row, with its first cells on top."""
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    if sum(widths) + _GAP * (len(widths) - 1) <= width() or width() == _PIPED:
        return "\n".join(
            "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
            for row in [heads, *rows]
        )
    return "\n".join(_block(heads, row) for row in rows)


def paragraph(text: str) -> str:
    """A text in lines that fit; as it is where nobody says how wide the output is."""
    if width() == _PIPED:
        return text
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width()))


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of columns beside each other, in their order: few parts, and about as wide."""
    found = _filled(widths, room)
    while room > 0 and len(narrower := _filled(widths, room - 1)) == len(found):
        found, room = narrower, room - 1
    return found


def _filled(widths: Sequence[int], room: int) -> list[list[int]]:
    """As many columns beside each other as fit, at least one."""
    parts: list[list[int]] = [[]]
    left = room
    for number, size in enumerate(widths):
        left -= size + _GAP
        if left < 0 and parts[-1]:
            parts.append([])
            left = room - size - _GAP
        parts[-1].append(number)
    return parts


def _block(heads: Sequence[str], row: Sequence[str]) -> str:
    top = f"{row[0]}  ({row[1]})" if row[1] != "-" else row[0]
    lines = textwrap.wrap(top, width()) or [""]
    for head, cell in zip(heads[2:], row[2:], strict=True):
        if cell != "-":
            lines += textwrap.wrap(
                f"{head}: {cell}", width(), initial_indent="    ", subsequent_indent="      "
            )
    return "\n".join(lines)
