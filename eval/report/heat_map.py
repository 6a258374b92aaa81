"""The picture of accuracies by kind of question."""

from __future__ import annotations

import numpy as np

from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.report.text import Row, methods_at, probes

with needs_eval():
    from matplotlib.figure import Figure


def heat_map(name: str, task: Row, shown: Row) -> Figure:
    """A row for each method at the shown budget, a column for each kind."""
    rows = [*probes(task), *methods_at(task, shown["budget"])]
    kinds = list(task["kinds"])
    values = np.array([[100 * row["by_kind"][kind]["accuracy"] for kind in kinds] for row in rows])
    values = np.column_stack([[100 * row["accuracy"] for row in rows], values])
    figure = Figure(figsize=(2.6 + 0.85 * (len(kinds) + 1), 1.4 + 0.24 * len(rows)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    for place, line in enumerate(values):
        for column, value in enumerate(line):
            color = "white" if value > 55 else "black"
            axes.text(
                column, place, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8
            )
    names = ["all", *(f"{kind}\n({task['kinds'][kind]})" for kind in kinds)]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8)
    axes.tick_params(length=0)
    axes.axvline(0.5, color="white", linewidth=3)
    axes.axhline(len(probes(task)) - 0.5, color="white", linewidth=3)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{name}: accuracy by kind at {shown['budget']}, %", fontsize=10, loc="left")
    return figure
