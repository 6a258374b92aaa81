"""Draws the picture of docs/papers_geometry.md: the published order of methods beside ours.

python -m dev.pages.pictures.papers_geometry --out docs/pictures
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from dev.pages import committed_results as committed
from dev.pages.papers_agreement import (
    FEWEST,
    MODEL,
    TASK,
    Row,
    measured,
    our_scores,
    relative,
)
from dev.pages.papers_published import blocks
from dev.pages.papers_ranking import Cell, cells
from dev.pages.pictures.concepts import save

matplotlib.use("svg")
from matplotlib import pyplot
from scipy.stats import rankdata

_COLUMNS = 4
_GOES, _MOVES = "#2b6cb0", "#d9822b"
"""The same place as published, and another."""


def papers_geometry(task: Mapping[str, Any]) -> Any:
    """A panel for each cell that stands alone: the published order, and a line to our place."""
    found = cells(blocks(), our_scores(task))
    shown = [cell for cell in found if len(cell.specs) >= FEWEST]
    rows = math.ceil(len(shown) / _COLUMNS)
    figure, panels = pyplot.subplots(rows, _COLUMNS, figsize=(13, 2.6 * rows), squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for axes, cell in zip(panels.flat, shown, strict=False):
        _orders(axes, cell, measured(task, cell.budget), task)
    figure.tight_layout()
    return figure


def _orders(axes: Any, cell: Cell, rows: Mapping[str, Row], task: Row) -> None:
    ours = [relative(rows[spec], task) for spec in cell.specs]
    left, right = (len(ours) + 1 - rankdata(one) for one in (cell.published, ours))
    for spec, share, theirs, before, after in zip(
        cell.specs, ours, cell.published, left, right, strict=True
    ):
        color = _GOES if before == after else _MOVES
        axes.plot([0, 1], [before, after], marker="o", markersize=3, color=color)
        line = _line(cell.specs, left, spec)
        axes.text(-0.05, line, f"{spec}  {theirs:.1f}", ha="right", va="center", fontsize=8)
        axes.text(1.05, _line(cell.specs, right, spec), f"{share:.1f}", va="center", fontsize=8)
    axes.set(xlim=(-1.2, 1.5), ylim=(len(ours) + 0.6, 0.4))
    axes.set_title(f"{cell.block.paper}, {cell.budget} tokens: as published | ours", fontsize=9)


def _line(specs: Sequence[str], places: Sequence[float], spec: str) -> float:
    """Where a method's figure is written: equal ones share a place, and each gets its own line."""
    place = places[specs.index(spec)]
    tied = [name for name, other in zip(specs, places, strict=True) if other == place]
    return place + 0.5 * (tied.index(spec) - (len(tied) - 1) / 2)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(prog="python -m dev.pages.pictures.papers_geometry")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    task = committed.results(MODEL)["tasks"][TASK]
    save(parser.parse_args().out, {"papers_geometry": lambda: papers_geometry(task)})


if __name__ == "__main__":
    main()
