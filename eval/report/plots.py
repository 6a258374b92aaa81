"""Pictures of a report."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.report.heat_map import heat_map
from vlmcompress.eval.report.text import (
    COMPARED,
    Row,
    probes,
    ran,
    shown_budget,
)
from vlmcompress.eval.results.standings import is_method
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY

with needs_eval():
    from matplotlib.figure import Figure
    from scipy.optimize import isotonic_regression

_MOST = 5
"""Methods in color besides the baselines."""
_STRONG = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#e377c2")
_BASELINE = ("#000000", "#8c564b", "#ff7f0e", "#17becf", "#bcbd22")
_FURTHER = 1.6
"""Times as many tokens at the end of a line as at that of the last: between two budgets."""
_STYLES: dict[str, dict[str, Any]] = {
    "pool": {"linewidth": 3.6, "alpha": 0.55, "marker": "s", "markersize": 7},
    "downsample": {"linewidth": 1.2, "linestyle": (0, (4, 2)), "marker": "v", "markersize": 4},
}
"""Of baselines that give almost the same: one is a wide band, so that both are seen."""
_REST = "0.82"
_MARKERS = {FULL: "*", TEXT_ONLY: "X"}


@dataclass(frozen=True)
class Picture:
    """One picture of a report.

    Attributes:
        task: that it is about.
        name: of its file.
        title: what it shows, in words.
        content: PNG.
    """

    task: str
    name: str
    title: str
    content: bytes


def draw(results: Row) -> list[Picture]:
    """The pictures of all tasks; none where no budget ran."""
    return [one for name, task in results["tasks"].items() for one in _of_task(name, task)]


def file_name(task: str, what: str) -> str:
    """The title of a picture about a task."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', task).strip('-')}_{what}.png"


def _of_task(name: str, task: Row) -> Iterator[Picture]:
    shown = shown_budget(task)
    if shown is None:
        return
    lines = _lines(task)
    yield Picture(
        name,
        file_name(name, "accuracy_tokens"),
        f"{name}: accuracy by visual tokens, with 95% intervals",
        _png(_against_tokens(name, task, lines)),
    )
    if any(row["seconds"] for row in ran(task)):
        yield Picture(
            name,
            file_name(name, "accuracy_time"),
            f"{name}: accuracy by time per question, with 95% intervals",
            _png(_against_time(name, task, lines)),
        )
    yield Picture(
        name,
        file_name(name, "kinds"),
        f"{name}: accuracy by kind of question at {shown['budget']}",
        _png(heat_map(name, task, shown)),
    )


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _lines(task: Row) -> dict[str, list[Row]]:
    """Rows of every method by falling tokens."""
    found: dict[str, list[Row]] = {}
    for row in ran(task):
        if is_method(row["method"]) and row["tokens"]:
            found.setdefault(row["method"], []).append(row)
    return {
        method: sorted(rows, key=lambda row: -row["tokens"]["kept"])
        for method, rows in found.items()
    }


def colors(lines: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """The baselines, and the methods with the highest mean accuracy of those at most budgets."""
    most = max(len(rows) for rows in lines.values())
    others = [
        method for method in lines if method not in COMPARED and len(lines[method]) >= most - 1
    ]
    best = sorted(others, key=lambda m: (-fmean(row["accuracy"] for row in lines[m]), m))[:_MOST]
    baselines = [method for method in COMPARED if method in lines]
    return dict(zip(best, _STRONG, strict=False)) | dict(zip(baselines, _BASELINE, strict=False))


def _against_tokens(name: str, task: Row, lines: Mapping[str, Sequence[Row]]) -> Figure:
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.subplots()
    colored = colors(lines)
    for method, rows in lines.items():
        x = [max(row["tokens"]["kept"], 0.5) for row in rows]
        style = _STYLES.get(method, {"linestyle": "--"} if method in COMPARED else {})
        _curve(axes, x, rows, colored.get(method), style)
    _bounds(axes, task)
    axes.set_xscale("log", base=2)
    ticks = sorted({one["target"] for one in task["budgets"] if one["target"]} | {task["tokens"]})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_xlabel("visual tokens kept, mean over decoder layers (log scale, fewer to the right)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(_title(name, task, lines), fontsize=10, loc="left")
    ends = {m: 100 * lines[m][-1]["accuracy"] for m in colored}
    places = {m: max(lines[m][-1]["tokens"]["kept"], 0.5) for m in colored}
    _label_ends(axes, ends, places, colored)
    _plain(axes)
    return figure


def _title(name: str, task: Row, lines: Mapping[str, Sequence[Row]]) -> str:
    rest = len(lines) - len(colors(lines))
    grey = f"; gray: {rest} other methods" if rest else ""
    return f"{name}: {task['scored']} questions, 95% intervals{grey}"


def _curve(
    axes: Any,
    x: Sequence[float],
    rows: Sequence[Row],
    color: str | None,
    style: Mapping[str, Any],
) -> None:
    y = [100 * row["accuracy"] for row in rows]
    if color is None:
        axes.plot(x, y, color=_REST, linewidth=0.8, marker=".", markersize=3, zorder=1)
        return
    low, high = zip(*(row["interval"] for row in rows), strict=True)
    axes.plot(x, y, color=color, zorder=3, **{"marker": "o", "markersize": 3.5, **style})
    if len(x) > 1:
        axes.fill_between(
            x, 100 * np.array(low), 100 * np.array(high), color=color, alpha=0.1, linewidth=0
        )


def _bounds(axes: Any, task: Row) -> None:
    """Lines for the whole model and the one without images."""
    for row in probes(task):
        style = {FULL: "-", TEXT_ONLY: ":"}.get(row["method"], "-.")
        y = 100 * row["accuracy"]
        axes.axhline(y, color="0.4", linestyle=style, linewidth=0.9, zorder=0)
        axes.annotate(
            row["method"],
            (0.005, y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=8,
            color="0.3",
        )


def _label_ends(
    axes: Any, ends: Mapping[str, float], places: Mapping[str, float], colored: Mapping[str, str]
) -> None:
    """Names beside the right ends of their lines, moved apart where they would overlap.

    A line that ends further left has its name there: a leader across the picture would look as if
    the curve went on.
    """
    low, high = axes.get_ylim()
    last = min(places.values(), default=0.0)
    for method in (one for one in ends if places[one] > _FURTHER * last):
        axes.annotate(
            f"{method} ends here",
            (places[method], ends[method]),
            xytext=(5, 9),
            textcoords="offset points",
            color=colored[method],
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            zorder=5,
        )
    order = sorted(
        (m for m in ends if places[m] <= _FURTHER * last), key=lambda method: ends[method]
    )
    heights = spread([ends[method] for method in order], 0.042 * (high - low))
    for method, height in zip(order, heights, strict=True):
        axes.annotate(
            method,
            (places[method], ends[method]),
            xycoords="data",
            xytext=(1.03, height),
            textcoords=("axes fraction", "data"),
            color=colored[method],
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colored[method], "linewidth": 0.5},
        )
    axes.set_ylim(low, high)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The nearest values (least squares) that are at least `gap` apart.

    Args:
        values: ascending.
        gap: between neighbors.
    """
    if not values:
        return []
    steps = gap * np.arange(len(values))
    return [float(value) for value in isotonic_regression(np.array(values) - steps).x + steps]


def _against_time(name: str, task: Row, lines: Mapping[str, Sequence[Row]]) -> Figure:
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.subplots()
    colored = colors(lines)
    timed = {m: [row for row in rows if row["seconds"]] for m, rows in lines.items()}
    for method, rows in timed.items():
        if method not in colored:
            x = [1000 * row["seconds"]["median"] for row in rows]
            axes.plot(x, [100 * row["accuracy"] for row in rows], ".", color=_REST, zorder=1)
    for method, color in colored.items():
        _timed(axes, timed[method], color, method)
    for row in probes(task):
        if row["seconds"]:
            _timed(axes, [row], "0.35", row["method"], marker=_MARKERS.get(row["method"], "D"))
    axes.set_xlabel("time per question in a batch, ms: median and quartiles over batches")
    axes.set_ylabel("accuracy, %")
    axes.set_title(_title(name, task, lines), fontsize=10, loc="left")
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)
    return figure


def _timed(axes: Any, rows: Sequence[Row], color: str, label: str, marker: str = "o") -> None:
    """Points with the quartiles of the time and the interval of the accuracy."""
    if not rows:
        return
    times = [row["seconds"] for row in rows]
    x = [1000 * time["median"] for time in times]
    y = [100 * row["accuracy"] for row in rows]
    axes.errorbar(
        x,
        y,
        [[y0 - 100 * row["interval"][k] for y0, row in zip(y, rows, strict=True)] for k in (0,)]
        + [[100 * row["interval"][1] - y0 for y0, row in zip(y, rows, strict=True)]],
        [
            [1000 * (time["median"] - time["low"]) for time in times],
            [1000 * (time["high"] - time["median"]) for time in times],
        ],
        color=color,
        label=label,
        marker=marker,
        markersize=9 if marker != "o" else 4,
        linewidth=1.2,
        linestyle="--" if label in COMPARED else "-",
        elinewidth=0.5,
        zorder=3,
    )


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
