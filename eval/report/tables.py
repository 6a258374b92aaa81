"""Tables of a report. All of it comes from results.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vlmcompress.eval.report.text import (
    Row,
    cannot,
    chosen,
    methods_at,
    p_value,
    percent,
    probes,
    ran,
    shown_budget,
    with_interval,
    wording,
)
from vlmcompress.eval.results.scores import RANDOM_NAME
from vlmcompress.eval.results.standings import claim, is_method
from vlmcompress.eval.run.cases import FULL

_HARD = (
    "Questions that the whole model answers right and a smaller image of as many tokens does not."
)

Table = tuple[list[str], list[list[str]]]
"""Head and rows."""
MARKS = {"better": "▲", "worse": "▼", None: ""}
"""Behind an accuracy: than the random choice."""


def costs(task: Row) -> Table:
    """Accuracy of every method at every budget, with marks where it is not that of random."""
    budgets = [one["budget"] for one in task["budgets"]]
    rows = {(row["method"], row["budget"]): row for row in ran(task) if is_method(row["method"])}
    shown = shown_budget(task)
    first = (
        {}
        if shown is None
        else {row["method"]: row["accuracy"] for row in methods_at(task, shown["budget"])}
    )
    names = dict.fromkeys(method for method, budget in rows if budget is not None)
    order = sorted(names, key=lambda method: (-first.get(method, -1.0), method))
    return ["method", *budgets], [
        [method, *(_cost(rows.get((method, budget))) for budget in budgets)] for method in order
    ]


def summary(name: str, task: Row) -> list[list[str]]:
    """A line for each budget of a task: the best method, what it costs, and what it saves.

    The columns are `SUMMARY`.
    """
    whole = next((row for row in ran(task) if row["method"] == FULL), None)
    rows = []
    for one in task["budgets"]:
        found = {row["method"]: row for row in methods_at(task, one["budget"])}
        best = found.get(one["best"])
        if best is not None:
            full = "-" if whole is None else percent(whole["accuracy"])
            rows.append(
                [name, one["budget"], best["method"], with_interval(best), full, _speed(best)]
            )
    return rows


SUMMARY = ["task", "budget", "best", "accuracy", "full", "times as fast"]


def costs_and_speed(task: Row) -> Table:
    """`costs` under the whole model, with how many times as fast each is at each budget."""
    heads, lines = costs(task)
    rows = {(row["method"], row["budget"]): row for row in ran(task)}
    whole = next((row for row in ran(task) if row["method"] == FULL), None)
    if whole is not None:
        lines = [[FULL, *[percent(whole["accuracy"])] * (len(heads) - 1)], *lines]
    names = [heads[0], *(name for head in heads[1:] for name in (head, f"{head}, speed"))]
    return names, [
        [
            method,
            *(
                cell
                for budget, accuracy in zip(heads[1:], cells, strict=True)
                for cell in (
                    accuracy,
                    "1.00x" if method == FULL else _speed(rows.get((method, budget))),
                )
            ),
        ]
        for method, *cells in lines
    ]


def _speed(row: Row | None) -> str:
    return "-" if row is None or row["speed"] is None else f"{row['speed']:.2f}x"


def _cost(row: Row | None) -> str:
    if row is None:
        return "-"
    mark = MARKS[claim(row, RANDOM_NAME)]
    off = f" [{row['tokens']['kept']:.3g} tokens]" if row["over_budget"] else ""
    return f"{percent(row['accuracy'])}{mark and ' ' + mark}{off}"


def by_kind(task: Row, budget: Row) -> Table:
    """Accuracy of the leaders, baselines and bounds by kind."""
    kinds = [f"{kind} ({n})" for kind, n in task["kinds"].items()]
    return ["method", "all", *kinds], [
        [
            row["method"],
            percent(row["accuracy"]),
            *(percent(row["by_kind"][kind]["accuracy"]) for kind in task["kinds"]),
        ]
        for row in [*probes(task), *chosen(task, budget)]
    ]


def hard(task: Row) -> Table | None:
    """Accuracy of leaders and baselines in the hard group of each budget."""
    found: dict[str, dict[str, str]] = {}
    names = {}
    for one in task["budgets"]:
        for row in chosen(task, one):
            if row["hard"] and row["hard"]["n"]:
                by, n = row["hard"]["by"], row["hard"]["n"]
                names[one["budget"]] = f"{one['budget']} ({n} wrong under {by})"
                accuracy = percent(row["hard"]["accuracy"])
                found.setdefault(row["method"], {})[one["budget"]] = accuracy
    rows = [[method, *(own.get(b, "-") for b in names)] for method, own in found.items()]
    return (["method", *names.values()], rows) if rows else None


def yes_no(task: Row, budget: Row) -> Table | None:
    """F1, precision, recall and share of "yes" by kind."""
    keys = {"f1": "F1", "precision": "precision", "recall": "recall", "yes_share": "says yes"}
    rows = [
        [row["method"], kind, *(percent(found[key]) for key in keys)]
        for row in [*probes(task), *chosen(task, budget)]
        for kind, found in (row["yes_no"] or {}).items()
    ]
    return (["method", "kind", *keys.values()], sorted(rows, key=lambda r: r[1])) if rows else None


class Section(NamedTuple):
    """A part of the report about a task: a table or lines, and what they are."""

    heading: str
    about: str = ""
    table: Table | None = None
    lines: Sequence[str] = ()


def sections(task: Row) -> Iterator[Section]:
    """What there is besides the summary, where there is anything to say."""
    shown = shown_budget(task)
    if shown is not None:
        yield Section(f"By kind at {shown['budget']}", table=by_kind(task, shown))
        if found := yes_no(task, shown):
            yield Section(f"Yes or no at {shown['budget']}", table=found)
    if found := hard(task):
        yield Section("Hard group", _HARD, found)
    if found := own_settings(task):
        yield Section("At a method's own setting", table=found)
    if lines := wording(task):
        yield Section("What a method loses depends on the wording", lines=lines)
    if lines := cannot(task):
        yield Section("Could not run", lines=lines)


def own_settings(task: Row) -> Table | None:
    """Methods that choose their number of tokens themselves, or have none to choose."""
    rows = [
        [
            row["method"],
            "-" if row["tokens"] is None else f"{row['tokens']['kept']:.3g}",
            with_interval(row),
            _against_full(row),
        ]
        for row in methods_at(task, None)
    ]
    return (["method", "tokens", "accuracy", "than the whole model"], rows) if rows else None


def _against_full(row: Row) -> str:
    word = claim(row, FULL)
    return f"{word or 'not significantly different'} (p {p_value(row['against'][FULL]['holm'])})"


def best_by_budget(task: Row) -> Table:
    """One row for each budget: the best method, how many share the lead, and random."""
    rows = []
    for one in task["budgets"]:
        found = {row["method"]: row for row in methods_at(task, one["budget"])}
        best = found.get(one["best"])
        if best is not None:
            rows.append(
                [
                    one["budget"],
                    best["method"],
                    with_interval(best),
                    _retained(best),
                    ", ".join(one["leaders"][1:]) or "none",
                    with_interval(found[RANDOM_NAME]) if RANDOM_NAME in found else "-",
                ]
            )
    names = ["budget", "best", "accuracy", "retained", "not significantly worse", "random"]
    return names, rows


def _retained(row: Row) -> str:
    found = row["retained"]
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{percent(found['value'])} ({100 * low:.1f} to {100 * high:.1f})"


def everything(task: Row) -> Table:
    """All figures of all cases; a single seed has its accuracy only."""
    names = ["method", "budget", "tokens", "accuracy", "retained", "hard", "changed"]
    names += ["- full", "p", "- random", "p", "- stride", "p", "seconds", "speed"]
    rows = []
    for row in ran(task):
        hard_group, seconds = row["hard"], row["seconds"]
        rows.append(
            [
                row["method"],
                row["budget"] or "-",
                "-" if row["tokens"] is None else f"{row['tokens']['kept']:.4g}",
                with_interval(row),
                _retained(row),
                percent(hard_group["accuracy"]) if hard_group else "-",
                percent(row["changed"]),
                *(
                    cell
                    for name in (FULL, RANDOM_NAME, "stride")
                    for cell in _difference(row, name)
                ),
                "-" if seconds is None else f"{seconds['median']:.3g}",
                _speed(row),
            ]
        )
    return names, rows


def _difference(row: Row, name: str) -> tuple[str, str]:
    found = row.get("against", {}).get(name)
    if found is None:
        return "-", "-"
    low, high = found["interval"]
    shown = f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return shown, p_value(found["holm"])
