"""Who leads at a budget, and who is better or worse than what: only where a corrected p says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.rows import AGAINST, comparisons, wording_p
from vlmcompress.eval.results.scores import PROBES, Reference, Scored
from vlmcompress.eval.results.statistics import SIGNIFICANT
from vlmcompress.eval.run.cases import FULL, RANDOM

BEST = "best"

Rows = Sequence[tuple[Scored, dict[str, Any]]]


def is_method(method: str) -> bool:
    """Whether it is compared with others: no bound, and not a single seed."""
    return method not in (*PROBES, *RANDOM)


def compare(rows: Rows, reference: Reference) -> None:
    """Add `against` and `wording` to the methods at one budget, corrected over these methods."""
    methods = [(scored, row) for scored, row in rows if is_method(scored.case.method)]
    for scored, row in methods:
        row["against"] = comparisons(scored, reference)
        p = wording_p(scored, reference)
        row["wording"] = None if p is None else {"p": p}
    for name in AGAINST:
        _correct([row["against"][name] for _, row in methods if name in row["against"]])
    _correct([row["wording"] for _, row in methods if row["wording"] is not None])
    # The bounds are no methods among others: nothing is to be corrected.
    for scored, row in rows:
        if scored.case.method in PROBES and scored.case.method != FULL:
            row["against"] = comparisons(scored, reference)
            _correct([row["against"][FULL]])


def standings(budget: str, rows: Rows) -> dict[str, Any]:
    """The best methods at a budget, and the claims that hold; adds `against["best"]` to the rows.

    Leaders are the method with the highest accuracy and all that are not significantly worse, with
    p corrected over all pairs of methods. A method that keeps more than the budget cannot be one.

    Args:
        budget: of all the rows.
        rows: after `compare`; all lists of the result are by falling accuracy.
    """
    methods = sorted(
        ((scored, row) for scored, row in rows if is_method(scored.case.method)),
        key=lambda pair: (-pair[1]["accuracy"], pair[0].case.method),
    )
    fair = [pair for pair in methods if not pair[1]["over_budget"]]
    if fair:
        _against_best(fair)
    targets = [row["target"] for _, row in methods if row["target"] is not None]
    listed = [row for _, row in methods]
    return {
        "budget": budget,
        "target": float(np.median(targets)) if targets else None,
        "methods": len(methods),
        "best": fair[0][1]["method"] if fair else None,
        "leaders": [
            row["method"]
            for place, (_, row) in enumerate(fair)
            if place == 0 or row["against"][BEST]["holm"] >= SIGNIFICANT
        ],
        "over_budget": [row["method"] for row in listed if row["over_budget"]],
        **{
            f"{word}_than_{name}": [row["method"] for row in listed if claim(row, name) == word]
            for name in AGAINST
            for word in ("better", "worse")
        },
        "not_different_from_full": [
            row["method"] for row in listed if FULL in row["against"] and not claim(row, FULL)
        ],
    }


def claim(row: Mapping[str, Any], name: str) -> str | None:
    """Whether a method is "better" or "worse" than another; None where the corrected p is not low.

    Args:
        row: of `compare`.
        name: one of `AGAINST`.
    """
    found = row.get("against", {}).get(name)
    if found is None or found["holm"] >= SIGNIFICANT:
        return None
    return "better" if found["difference"] > 0 else "worse"


def _against_best(fair: Rows) -> None:
    best = fair[0][0]
    for scored, row in fair[1:]:
        row["against"][BEST] = {
            "difference": float((scored.scores - best.scores).mean()),
            "p": statistics.paired_test(scored.scores, best.scores),
        }
    # Which method is the best is read off the same data: each pair could have been asked about.
    # Corrected over the methods alone, one of 40 equal ones is "worse" in 27 of 100 runs.
    pairs = len(fair) * (len(fair) - 1) // 2
    _correct([row["against"][BEST] for _, row in fair[1:]], of=pairs)


def _correct(found: Sequence[dict[str, Any]], of: int = 0) -> None:
    """Add `holm` to each, corrected for `of` tests where these are more."""
    others = [1.0] * (of - len(found))
    corrected = statistics.holm([*(one["p"] for one in found), *others])
    for one, p in zip(found, corrected, strict=False):
        one["holm"] = float(p)
