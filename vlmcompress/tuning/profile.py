"""What a race found, as the profile that `method="auto"` reads and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.rows import bounds
from vlmcompress.eval.results.statistics import SIGNIFICANT
from vlmcompress.eval.run.cases import Case
from vlmcompress.methods.composition.spec import parse
from vlmcompress.tuned import FORMAT, KIND
from vlmcompress.tuning.race import Measured, front, ranked, taken, worse
from vlmcompress.tuning.run import BLIND, WHOLE, Race

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
        "unusable": race.unusable(),
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
        "tied": tied,
        "blind": _row(race, BLIND, field[first]) if race.ran(BLIND) else None,
        "unfit": {case.method: left.reason for left, case in gone if left.unfit},
        "warnings": _warnings(field[first], race.measured(BLIND) if race.ran(BLIND) else None),
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
        "tokens": race.tokens(case),
    }


def _timed(race: Race, case: Case) -> dict[str, Any]:
    """Milliseconds a question up to its first token: median, and quartiles where there are some."""
    seconds = sorted(race.seconds(case))
    if not seconds:
        return {"ms": None, "ms_interval": None}
    at = [seconds[round(share * (len(seconds) - 1))] * 1000 for share in (0.25, 0.5, 0.75)]
    return {"ms": at[1], "ms_interval": [at[0], at[2]]}


def _warnings(mine: Measured, blind: Measured | None) -> list[str]:
    """Why the choice may mean little."""
    found = []
    if len(mine.kl) < FEW:
        found.append(f"only {len(mine.kl)} questions: differences of many points are chance")
    if (
        blind is not None
        and not statistics.paired_test(mine.scores, blind.scores, alternative="greater")
        < SIGNIFICANT
    ):
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


def draw(profile: Mapping[str, Any], path: Path) -> None:
    """Agreement against time to the first token, one panel a budget; hollow reads the question.

    Raises:
        VLMCompressError: matplotlib is missing.
    """
    from vlmcompress.profiler.plot import check_matplotlib

    check_matplotlib()
    # Without pyplot nothing is registered anywhere, and no display is asked for.
    from matplotlib.figure import Figure

    budgets = profile["budgets"]
    figure = Figure(figsize=(1 + 4.5 * len(budgets), 4.5), layout="constrained")
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axes, (budget, found) in zip(panels, budgets.items(), strict=True):
        _panel(axes, [row for row in found["rows"] if row["ms"] is not None])
        axes.set_title(f"{profile['model']['name']} at {budget}", fontsize=9)
        axes.set_xlabel("ms a question, to the first token")
    panels[0].set_ylabel("same answer as the whole model, %")
    figure.savefig(path, dpi=150)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        low, high = row["agreement_interval"]
        value = 100 * row["agreement"]
        color = "#e15759" if place == 0 else "#4e79a7" if row["front"] else "#bab0ac"
        axes.errorbar(
            row["ms"],
            value,
            yerr=[[max(0.0, value - 100 * low)], [max(0.0, 100 * high - value)]],
            fmt="o",
            markersize=5,
            color=color,
            markerfacecolor=color if row["question_blind"] else "white",
            elinewidth=0.6,
        )
        if place == 0 or row["front"]:
            axes.annotate(
                row["method"],
                (row["ms"], value),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
