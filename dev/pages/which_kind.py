"""A task of the results narrowed to its questions of one kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dev.pages.committed_results import scores_of
from vlmcompress.eval.report.text import ran
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.scores import Scored
from vlmcompress.eval.results.standings import is_method, standings
from vlmcompress.eval.run.cases import FULL, Case

_KEPT = ("method", "budget", "target", "over_budget", "speed")


def narrowed(task: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What the results say of the questions of one kind: as if nothing else had been asked.

    Methods are compared with the whole model and with the best at their budget, corrected over the
    methods there as in `vlmcompress.eval.results.standings`, and with nothing else.

    Args:
        task: part of a results.json.
        kind: one of its kinds.

    Returns:
        A task with the keys "scored", "full", "cases" and "budgets".
    """
    mask = np.array(task["questions"]["kind"], dtype=object) == kind
    rows = [
        {name: row[name] for name in _KEPT}
        | row["by_kind"][kind]
        | {"scores": scores_of(row)[mask].tolist(), "against": {}}
        for row in ran(task)
    ]
    full = next(row for row in rows if row["method"] == FULL)
    found = {"scored": int(mask.sum()), "full": full, "cases": rows}
    names = [one["budget"] for one in task["budgets"]]
    methods = [row for row in rows if is_method(row["method"])]
    return found | {
        "budgets": [
            _at([row for row in methods if row["budget"] == name], name, full) for name in names
        ]
    }


def _at(rows: Sequence[dict[str, Any]], budget: str, full: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the methods at a budget."""
    whole = scores_of(full)
    for row in rows:
        scores = scores_of(row)
        row["against"][FULL] = {
            "difference": float((scores - whole).mean()),
            "p": statistics.paired_test(scores, whole),
        }
    compared = [row["against"][FULL] for row in rows]
    corrected = statistics.holm([one["p"] for one in compared])
    for one, p in zip(compared, corrected, strict=True):
        one["holm"] = p
    return standings(
        budget,
        [(Scored(Case(row["method"], budget), [], scores_of(row), {}), row) for row in rows],
    )
