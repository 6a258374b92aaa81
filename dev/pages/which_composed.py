"""Whether a composition of methods is at least as good as the best single one everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dev.pages.committed_results import scores_of
from vlmcompress.defaults import AUTO
from vlmcompress.eval.report.text import methods_at, ran
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.statistics import SIGNIFICANT
from vlmcompress.eval.run.cases import ONE_FRAME
from vlmcompress.methods.composition.spec import parse


@dataclass
class Composed:
    """A composition beside the best single method of each task and budget.

    Attributes:
        method: its spec.
        cells: tasks and budgets at which it ran and kept to the budget, with the difference of
            accuracy to the best single method there.
        missing: those at which it did not.
        worse: those at which it is significantly worse.
    """

    method: str
    cells: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)

    @property
    def lower(self) -> list[str]:
        """Where its accuracy is lower, whether or not that is significant."""
        return [cell for cell, difference in self.cells.items() if difference < 0]

    @property
    def never_worse(self) -> bool:
        """Whether it ran everywhere and is nowhere significantly worse."""
        return not self.missing and not self.worse

    @property
    def never_lower(self) -> bool:
        """Whether it ran everywhere and nowhere has a lower accuracy."""
        return not self.missing and not self.lower


def dominating(results: Mapping[str, Any]) -> list[Composed]:
    """All compositions that could run, those that come nearest to the best everywhere first.

    The best single method of each task and budget is known in hindsight and differs from one to the
    next, which is more than a user can have. Paired tests as everywhere, corrected over the
    compositions of a task and budget (Holm).

    Args:
        results: model -> content of its results.json.
    """
    tasks = [
        (f"{model} {name}", task)
        for model, content in results.items()
        for name, task in content["tasks"].items()
    ]
    found: dict[str, Composed] = {}
    for _, task in tasks:
        for row in ran(task):
            if row["budget"] is not None and is_composition(row["method"]):
                found.setdefault(row["method"], Composed(row["method"]))
    for where, task in tasks:
        for budget in (one["budget"] for one in task["budgets"]):
            _compare(f"{where} at {budget}", methods_at(task, budget), found)
    return sorted(
        found.values(),
        key=lambda one: (
            len(one.missing),
            len(one.worse),
            len(one.lower),
            -min(one.cells.values(), default=0.0),
        ),
    )


def is_composition(spec: str) -> bool:
    """Whether it stands for several methods; "auto" does not say for which."""
    return spec not in (AUTO, ONE_FRAME) and len(parse(spec).methods) > 1


def _compare(cell: str, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Composed]) -> None:
    """Note how the compositions of one task and budget did; `rows` by falling accuracy."""
    fair = [row for row in rows if not row["over_budget"] and row["method"] != AUTO]
    single = next((row for row in fair if row["method"] not in found), None)
    composed = [row for row in fair if row["method"] in found]
    if single is not None:
        best = scores_of(single)
        p = [statistics.paired_test(scores_of(row), best) for row in composed]
        for row, corrected in zip(composed, statistics.holm(p), strict=True):
            one = found[row["method"]]
            one.cells[cell] = difference = float((scores_of(row) - best).mean())
            if difference < 0 and corrected < SIGNIFICANT:
                one.worse.append(cell)
    for one in found.values():
        if cell not in one.cells:
            one.missing.append(cell)
