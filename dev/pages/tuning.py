"""Writes the table of docs/tuning.md: what was tuned without labels, beside labelled hindsight.

python -m dev.pages.tuning            # rewrite it
python -m dev.pages.tuning --check    # exit 1 if that would change anything
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dev.pages import committed_results as committed
from dev.pages.auto_table import taken
from dev.pages.generated import ROOT, keep_up, updated
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.report.text import methods_at
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.statistics import Scores

PAGE = ROOT / "docs" / "tuning.md"
PROFILES = committed.FOLDER / "tuning"
"""MODEL-TASK.json, as `dev.benchmarks.tuning` writes them."""
WITHIN = 1.0
"""Points that a choice may lose."""
_SPLITS = 400
"""Halves of the labelled questions that the choice with labels is simulated on."""
_HEADS = (
    "keep",
    "questions",
    "tuned, without labels",
    "right",
    "best in hindsight",
    "right",
    "apart, points",
    "`auto` without a profile",
    "chosen with labels",
)

_ABOUT = """## Does it work?

The built-in models, tuned on pictures and clips of another seed than the committed answers of all
methods in `docs/eval`, which only this table looks at. *Best in hindsight* is picked and measured
on the same labelled answers, so it flatters itself; *chosen with labels* is how often the best on
one half of them is right on the other half. `make tuning` measures it again.
"""
Profile = Mapping[str, Any]


def profiles() -> dict[tuple[str, str], Profile]:
    """Model and task -> the committed profile."""
    found = {}
    for path in sorted(PROFILES.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[content["model"]["name"], content["made"]["task"]] = content
    return found


def tables(found: Mapping[tuple[str, str], Profile] | None = None) -> str:
    """A table for each profile, and a line on what it was made with; nothing without profiles."""
    parts: list[str] = []
    for (model, task), profile in (profiles() if found is None else found).items():
        parts = parts or [_ABOUT]
        results = committed.results(model)["tasks"][task]
        lines = list(_lines(profile, results))
        parts.append(
            f"### `{model}`, {task}\n\n{as_table(_HEADS, [line for line, _ in lines])}\n\n"
            f"{_kept(lines)} {_made(profile, results)}\n"
        )
    return "\n".join(parts)


def headline() -> str:
    """At how many budgets of all profiles a choice without labels was near the best."""
    apart = [
        value
        for (model, task), profile in profiles().items()
        for _, value in _lines(profile, committed.results(model)["tasks"][task])
    ]
    near = sum(value is not None and value >= -WITHIN for value in apart)
    return (
        f"`vlmcompress tune`, without labels, took a method within {WITHIN:g} point of the best in "
        f"hindsight at {near} of {len(apart)} budgets of the built-in models "
        "([tuning](docs/tuning.md))."
    )


def _lines(profile: Profile, task: Mapping[str, Any]) -> Iterator[tuple[list[str], float | None]]:
    """Cells of each budget, and by how many points the tuned method is apart from the best.

    Args:
        profile: of one model and task.
        task: answers of all methods to labelled questions.
    """
    picks = taken(task)
    for budget, at in profile["budgets"].items():
        rows = {
            row["method"]: committed.scores_of(row)
            for row in methods_at(task, budget)
            if not row["over_budget"]
        }
        best = max(rows, key=lambda name: float(rows[name].mean()))
        first = at["rows"][0]
        spec = first["method"]
        mine = rows.get(spec)
        auto = rows.get(picks[budget])
        cells = [
            budget,
            str(first["n"]),
            f"`{spec}`",
            _right(mine),
            f"`{best}`",
            _right(rows[best]),
        ]
        yield (
            [
                *cells,
                _apart(mine, rows[best]),
                "-" if auto is None else f"`{picks[budget]}` {100 * auto.mean():.1f}",
                f"{100 * with_labels(list(rows.values())):.1f}",
            ],
            None if mine is None else 100 * float((mine - rows[best]).mean()),
        )


def with_labels(scores: Sequence[Scores]) -> float:
    """How often the choice is right that is the best on one half of the questions, on the other.

    Mean over random halves: what labels of as many questions would buy, unlike the best in
    hindsight, which is picked and measured on the same questions.
    """
    table = np.stack(scores)
    rng, found = np.random.default_rng(0), []
    for _ in range(_SPLITS):
        order = rng.permutation(table.shape[1])
        half = len(order) // 2
        best = int(table[:, order[:half]].mean(1).argmax())
        found.append(table[best, order[half:]].mean())
    return float(np.mean(found))


def _right(scores: Scores | None) -> str:
    if scores is None:
        return "-"
    interval = statistics.proportion(scores)
    return f"{100 * scores.mean():.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _apart(mine: Scores | None, best: Scores) -> str:
    if mine is None:
        return "-"
    interval = statistics.mean_difference(mine, best)
    value = 100 * float((mine - best).mean())
    text = f"{value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    return text if value >= -WITHIN else f"**{text}**"


def _kept(lines: Sequence[tuple[Sequence[str], float | None]]) -> str:
    apart = [value for _, value in lines if value is not None]
    within = sum(value >= -WITHIN for value in apart)
    return (
        f"Within {WITHIN:g} point of the best in hindsight at {within} of {len(lines)} budgets; "
        "where it is not, **bold**."
    )


def _made(profile: Profile, task: Mapping[str, Any]) -> str:
    made = profile["made"]
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers"))
    whole = "" if profile["complete"] else " Time was up before all of them were asked."
    return (
        f"Tuned on up to {made['samples']} questions of seed {made['seed']}, measured on "
        f"{task['scored']} of seed 0.{whole} {made['device']}, {made['dtype']}, {made['date']}, "
        f"{versions}."
    )


def page() -> str:
    """The page with its table made anew."""
    return updated(PAGE.read_text(encoding="utf-8"), {"tuned": tables})


def main() -> None:
    """Rewrite the table, or only say whether that is needed."""
    keep_up(lambda: {PAGE: page()}, "tuning")


if __name__ == "__main__":
    main()
