"""What a race found, as the profile that `method="auto"` reads and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.rows import bounds
from vlmcompress.eval.results.statistics import SIGNIFICANT
from vlmcompress.eval.run.cases import Case
from vlmcompress.methods.composition.spec import parse
from vlmcompress.tuned import FORMAT, KIND
from vlmcompress.tuning.measurements import BLIND, WHOLE
from vlmcompress.tuning.race import Measured, front, ranked, taken, worse
from vlmcompress.tuning.run import Race

FEW = 100
"""Questions below which a profile warns that they are few."""


def document(race: Race, model: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a profile.

    Args:
        race: that has been run.
        model: its name, and what `vlmcompress.tuned.identity` says of it.
        made: settings, versions and the machine.
    """
    plan = race.plan
    return {
        "kind": KIND,
        "format": FORMAT,
        "model": dict(model),
        "objective": plan.objective,
        "complete": race.done == len(race.batches),
        "passed_over": race.kept.passed_over(),
        "whole": _timed(race, WHOLE),
        "budgets": {budget: _found(race, budget) for budget in plan.budgets},
        "made": dict(made),
    }


def _found(race: Race, budget: str) -> dict[str, Any]:
    """What was found at one budget: rows with the one that is taken first."""
    field = race.field(budget)
    first = taken(field, race.plan.objective)
    order = [first, *(spec for spec in ranked(field) if spec != first)]
    out = worse(field, first)
    tied = [spec for spec in order[1:] if spec not in out]
    best = set(front(field))
    rows = [
        _row(race, Case(spec, budget), field[first])
        | {"front": spec in best, "left": f"worse, p {out[spec]:.2g}" if spec in out else None}
        for spec in order
    ]
    gone = [
        (left, Case(spec, budget))
        for spec in race.plan.candidates
        if (left := race.left.get(Case(spec, budget))) is not None
    ]
    later = sorted(
        ((left, case) for left, case in gone if not left.unfit),
        key=lambda one: (-one[0].batches, -float(race.measured(one[1]).scores.mean())),
    )
    rows += [
        _row(race, case, field[first]) | {"front": False, "left": left.reason}
        for left, case in later
    ]
    return {
        "rows": rows,
        "last": len(field),
        "tied": tied,
        "blind": _row(race, BLIND, field[first]) if _can_be_blind(race) else None,
        "unfit": {case.method: left.reason for left, case in gone if left.unfit},
        "warnings": _warnings(race, field[first]),
    }


def _row(race: Race, case: Case, first: Measured) -> dict[str, Any]:
    """Figures of one case; `behind` is its score less that of the one that is taken."""
    mine = race.measured(case)
    n = len(mine.kl)
    kl = statistics.mean_of(mine.kl)
    apart = mine.scores - first.scores[:n]
    return {
        "method": case.method,
        "question_blind": not parse(case.method).reads_question,
        "n": n,
        "kl": float(mine.kl.mean()),
        "kl_interval": None if kl is None else bounds(kl),
        "agreement": float(mine.agrees.mean()),
        "agreement_interval": bounds(statistics.proportion(mine.agrees)),
        "behind": float(apart.mean()),
        "behind_interval": bounds(statistics.mean_difference(mine.scores, first.scores[:n])),
        **_timed(race, case),
        "speed": mine.fast or None,
        "tokens": race.kept.tokens(case, race.until(case)),
    }


def _timed(race: Race, case: Case) -> dict[str, Any]:
    """Milliseconds a question up to its first token: median, and quartiles where there are some."""
    seconds = sorted(race.kept.seconds(case))
    if not seconds:
        return {"ms": None, "ms_interval": None}
    at = [seconds[round(share * (len(seconds) - 1))] * 1000 for share in (0.25, 0.5, 0.75)]
    return {"ms": at[1], "ms_interval": [at[0], at[2]]}


def _can_be_blind(race: Race) -> bool:
    return race.kept.error(BLIND, race.done) is None


def _warnings(race: Race, mine: Measured) -> list[str]:
    """Why the choice may mean little."""
    found = []
    if len(mine.kl) < FEW:
        found.append(f"only {len(mine.kl)} questions: differences of many points are chance")
    blind = race.measured(BLIND).scores if _can_be_blind(race) else np.zeros(len(mine.kl))
    if statistics.paired_test(mine.scores, blind, alternative="greater") >= SIGNIFICANT:
        found.append("no better than without any picture: these questions do not need their own")
    return found


def heads() -> tuple[str, ...]:
    """Of the columns that `lines` fills."""
    return ("agrees %", "KL", "behind", "ms", "x whole", "tokens", "n", "question-blind", "")


def lines(found: Mapping[str, Any], shown: int) -> list[tuple[str, Sequence[str]]]:
    """A table of one budget: label and cells, the one that is taken first and marked.

    Args:
        found: of a budget in a profile.
        shown: candidates, at most.
    """
    rows = list(found["rows"][:shown])
    if found["blind"] is not None:
        rows.append(found["blind"] | {"left": "keeps no picture"})
    return [
        (f"{'* ' if place == 0 else ''}{row['method']}", _cells(row))
        for place, row in enumerate(rows)
    ]


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    low, high = row["agreement_interval"]
    note = row["left"] or ("none is better and faster" if row.get("front") else "")
    return (
        f"{100 * row['agreement']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        _with_interval(row["kl"], row["kl_interval"]),
        f"{100 * row['behind']:+.1f}",
        "-" if row["ms"] is None else f"{row['ms']:.1f}",
        "-" if row["speed"] is None else f"{row['speed']:.2f}",
        f"{row['tokens']['kept']:.4g}",
        str(row["n"]),
        "yes" if row["question_blind"] else "no",
        note,
    )


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.3f}" + (
        "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    )
