"""A picture of a profile: agreement against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmcompress.profiler.plot import check_matplotlib

_TAKEN, _FRONT, _OTHER = "#e15759", "#4e79a7", "#bab0ac"


def draw(profile: Mapping[str, Any], path: Path) -> None:
    """A panel for each budget; methods that read the question are hollow.

    Raises:
        VLMCompressError: matplotlib is missing.
    """
    check_matplotlib()
    # Without pyplot nothing is registered anywhere, and no display is asked for.
    from matplotlib.figure import Figure

    budgets = profile["budgets"]
    figure = Figure(figsize=(1 + 4.5 * len(budgets), 4.5), layout="constrained")
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axes, (budget, found) in zip(panels, budgets.items(), strict=True):
        _panel(axes, found["rows"])
        axes.set_title(f"{profile['model']['name']} at {budget}", fontsize=9)
        axes.set_xlabel("ms a question, to the first token")
    panels[0].set_ylabel("same answer as the whole model, %")
    figure.savefig(path, dpi=150)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        low, value, high = (100 * one for one in _around(row))
        color = _TAKEN if place == 0 else _FRONT if row["front"] else _OTHER
        axes.errorbar(
            row["ms"],
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            markersize=5,
            color=color,
            markerfacecolor=color if row["question_blind"] else "white",
            elinewidth=0.6,
        )
        if color != _OTHER:
            at = {"xytext": (4, 4), "textcoords": "offset points"}
            axes.annotate(row["method"], (row["ms"], value), fontsize=7, **at)


def _around(row: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = row["agreement_interval"]
    value = row["agreement"]
    return min(low, value), value, max(high, value)
