"""What a report says in words. All of it comes from results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vlmcompress.eval.results.scores import PROBES, RANDOM_NAME
from vlmcompress.eval.results.standings import is_method
from vlmcompress.eval.results.statistics import SIGNIFICANT
from vlmcompress.eval.run.cases import BASELINES, RANDOM

Row = Mapping[str, Any]

LEGEND = (
    "Accuracies with 95% intervals. ▲ better and ▼ worse than the mean of three random choices "
    "at the same budget. Every comparison is paired question by question (exact McNemar test, "
    "or sign flips where scores are not 0 or 1) and corrected over the methods at a budget "
    "(Holm), over all their pairs where the best is one side; better and worse are said only "
    "where the corrected p is below 0.05. No significant difference does not mean that two are "
    "equal."
)
COMPARED = (RANDOM_NAME, *(name for name in BASELINES if name not in RANDOM))
"""The baselines, with one name for all seeds of the random choice."""
SHOWN_SHARE = 0.25
"""Where one budget stands for all, it is the nearest to this share of the tokens."""
_MOST_LEADERS = 8
"""In tables; sentences name all."""
_MOST_NAMED = 12
"""In sentences about who is better or no different."""


_FEWEST = 6
"""Questions, fewer of which no paired test finds significant, whatever the answers."""


class Warned(NamedTuple):
    """A warning and the task that it is about."""

    task: str
    text: str


def percent(value: float | None) -> str:
    """`93.2%`."""
    return "-" if value is None else f"{100 * value:.1f}%"


def with_interval(found: Row) -> str:
    """`93.2% (90.7 to 95.1)`."""
    low, high = found["interval"]
    return f"{percent(found['accuracy'])} ({100 * low:.1f} to {100 * high:.1f})"


def p_value(value: float) -> str:
    """`0.031`, `2e-07`."""
    return f"{value:.2g}"


def name_of(row: Row) -> str:
    """Method and budget."""
    return row["method"] if row["budget"] is None else f"{row['method']} at {row['budget']}"


def warnings(results: Row) -> list[Warned]:
    """All warnings of all tasks."""
    return [
        Warned(name, found)
        for name, task in results["tasks"].items()
        for found in [
            *task["warnings"],
            *(one for row in task["cases"] for one in row.get("warnings", [])),
        ]
    ]


def ran(task: Row) -> list[Row]:
    """The cases that could run."""
    return [row for row in task["cases"] if "cannot" not in row]


def methods_at(task: Row, budget: str | None) -> list[Row]:
    """Rows of the methods at a budget by falling accuracy; a single seed is none."""
    rows = [row for row in ran(task) if row["budget"] == budget and is_method(row["method"])]
    return sorted(rows, key=lambda row: (-row["accuracy"], row["method"]))


def probes(task: Row) -> list[Row]:
    """Rows of what bounds the methods."""
    return [row for row in ran(task) if row["method"] in PROBES]


def shown_budget(task: Row) -> Row | None:
    """Standings at the budget that stands for all; None where nothing ran at any."""
    known = [one for one in task["budgets"] if one["target"] is not None]
    if not known:
        return next(iter(task["budgets"]), None)
    nearest: Row = min(known, key=lambda one: abs(one["target"] / task["tokens"] - SHOWN_SHARE))
    return nearest


def chosen(task: Row, budget: Row, others: Sequence[str] = COMPARED) -> list[Row]:
    """Leaders, as many as a table takes, then the baselines that are not among them."""
    rows = methods_at(task, budget["budget"])
    wanted = [*budget["leaders"][:_MOST_LEADERS], *others]
    return [row for row in rows if row["method"] in wanted]


def head(task: Row) -> str:
    """How much was asked, and the bounds."""
    failed = f", {task['failed']} failed" if task["failed"] else ""
    blind = "" if task["blind"] is None else f"; without images {with_interval(task['blind'])}"
    return (
        f"{task['scored']} of {task['asked']} questions scored{failed}; {task['tokens']:g} visual "
        f"tokens each; version {task['version']}, metric {task['metric']}. Accuracy of the whole "
        f"model {with_interval(task['full'])}{blind}; of always giving the commonest answer of a "
        f"kind {percent(task['commonest'])}."
    )


def sentences(task: Row) -> list[tuple[str, list[str]]]:
    """For each budget a heading and what may be claimed there."""
    return [(_heading(task, one), list(_claims(task, one))) for one in task["budgets"]]


def _heading(task: Row, found: Row) -> str:
    if found["target"] is None:
        return f"At {found['budget']}"
    return f"At {found['budget']}: {found['target']:g} of {task['tokens']:g} tokens"


def _claims(task: Row, found: Row) -> Iterable[str]:
    rows = {row["method"]: row for row in methods_at(task, found["budget"])}
    if found["best"] is None:
        yield "No method kept to this budget."
    else:
        best, others = found["leaders"][0], found["leaders"][1:]
        if rows[best]["accuracy"] == 0:
            yield "No method gave a right answer."
            return
        if task["scored"] < _FEWEST:
            yield f"{task['scored']} questions are too few to tell methods apart."
            return
        yield f"Best: {best} {with_interval(rows[best])}."
        yield f"Not significantly worse: {_listed(others)}."
        if RANDOM_NAME in found["leaders"]:
            yield "Random choice is among these: no method is shown to be better than it here."
    for words, key in (
        ("Worse than random", "worse_than_random"),
        ("Worse than stride", "worse_than_stride"),
        ("Better than random", "better_than_random"),
        ("No significant difference from the whole model", "not_different_from_full"),
        ("Better than the whole model", "better_than_full"),
        ("Above the budget, so not ranked", "over_budget"),
    ):
        if found[key] or key.startswith("worse"):
            # Who loses is named in full.
            names = _listed(found[key], None if key.startswith("worse") else _MOST_NAMED)
            yield f"{words} ({len(found[key])} of {found['methods']}): {names}."


def _listed(names: Sequence[str], most: int | None = None) -> str:
    shown = names[:most]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more if names else "none"


def accuracies(task: Row) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """A table for the terminal: budgets, and the accuracy of each method at each of them."""
    rows = ran(task)
    budgets = [one["budget"] for one in task["budgets"]]
    own = any(row["budget"] is None for row in rows if row["method"] not in PROBES)
    heads = [*budgets, *(["own setting"] if own else [])]
    found = {(row["method"], row["budget"]): percent(row["accuracy"]) for row in rows}
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        if method in PROBES:
            cells = [found[method, None]] * len(heads)
        else:
            cells = [found.get((method, one), "-") for one in [*budgets, *([None] if own else [])]]
        lines.append((method, cells))
    return heads, lines


def wording(task: Row) -> list[str]:
    """Methods whose loss depends on the wording, with the accuracy under each."""
    return [
        f"{name_of(row)}: "
        + ", ".join(f"wording {w} {percent(a)}" for w, a in row["by_wording"].items())
        + f" (corrected p {p_value(row['wording']['holm'])})"
        for row in ran(task)
        if row.get("wording") and row["wording"]["holm"] < SIGNIFICANT
    ]


def cannot(task: Row) -> list[str]:
    """What could not run and why, once for each method and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in task["cases"]:
        if "cannot" in row:
            own = found.setdefault((row["method"], row["cannot"]), [])
            own.append(row["budget"] or "its own setting")
    return [
        f"{method} at {', '.join(budgets)}: {reason}"
        for (method, reason), budgets in sorted(found.items())
    ]
