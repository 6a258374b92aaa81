"""The part of a method's page that says what it does to the methods it goes around."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dev.pages import committed_results as committed
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.report.text import methods_at
from vlmcompress.eval.results import statistics
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.restore import Restore

_HEAD = """
## Before and after

Right answers in % to the same questions without and with it, and in brackets the questions that
only the one and only the other answered right. **Bold** is better, *italic with a down arrow* (↓)
worse: where the exact paired test, corrected over a table (Holm), has p < 0.05. Of {pairs} pairs
{better} are better and {worse} worse.
"""
_ENOUGH = 0.05
Row = Mapping[str, Any]
Pair = tuple[Row, Row, float]
"""Without, with, and p of the paired test, corrected."""


def repaired() -> str:
    """All pairs of a method alone and the same method repaired, a table for each task."""
    tables, verdicts = [], []
    for model, content in committed.all_results(committed.RESTORE).items():
        for name, task in content["tasks"].items():
            pairs = _pairs(task)
            verdicts += [_verdict(pair) for pair in pairs.values()]
            budgets = [one["budget"] for one in task["budgets"]]
            specs = dict.fromkeys(spec for spec, _ in pairs)
            table = as_table(
                ["method", *budgets],
                ([f"`{s}`", *(_cell(pairs.get((s, b))) for b in budgets)] for s in specs),
            )
            tables.append(f"### `{model}`, {task['scored']} questions of `{name}`\n\n{table}\n")
    better, worse = verdicts.count("better"), verdicts.count("worse")
    head = _HEAD.format(pairs=len(verdicts), better=better, worse=worse)
    return "\n".join([head, *tables])


def _pairs(task: Row) -> dict[tuple[str, str], Pair]:
    """(spec, budget) -> the pair."""
    found = list(_measured(task))
    tests = [
        statistics.paired_test(committed.scores_of(after), committed.scores_of(before))
        for before, after in found
    ]
    return {
        (after["method"], after["budget"]): (before, after, p)
        for (before, after), p in zip(found, statistics.holm(tests), strict=True)
    }


def _measured(task: Row) -> Iterator[tuple[Row, Row]]:
    """Every row of a repaired method behind that of the method alone."""
    for row in task["cases"]:
        spec, budget = row["method"], row["budget"]
        if budget is None or "cannot" in row or not spec.startswith(Restore.name):
            continue
        method = parse(spec).projector
        assert isinstance(method, Restore)
        alone = [one for one in methods_at(task, budget) if one["method"] == method.of]
        yield from ((before, row) for before in alone)


def _verdict(pair: Pair) -> str | None:
    before, after, p = pair
    if p >= _ENOUGH:
        return None
    return "better" if after["accuracy"] > before["accuracy"] else "worse"


def _cell(pair: Pair | None) -> str:
    if pair is None:
        return "-"
    before, after, _ = pair
    own, other = committed.scores_of(after), committed.scores_of(before)
    counts = f"({int((own > other).sum())} : {int((own < other).sum())})"
    right = f"{100 * after['accuracy']:.1f}"
    shown = {"better": f"**{right}**", "worse": f"*{right}* ↓", None: right}[_verdict(pair)]
    return f"{100 * before['accuracy']:.1f} → {shown} {counts}"
