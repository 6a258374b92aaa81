"""Results of a run: every task, case and budget, as one document."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from vlmcompress import errors
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.read import Answer, Run, read_run
from vlmcompress.eval.results.rows import part, row
from vlmcompress.eval.results.scores import HARD_BY, RANDOM_NAME, Reference, Scored, score, together
from vlmcompress.eval.results.standings import compare, standings
from vlmcompress.eval.run.cases import FULL, RANDOM, TEXT_ONLY, Case
from vlmcompress.eval.tasks.task import Sample, Task

__all__ = ["FORMAT", "Run", "read_run", "summarise"]

FORMAT = 1
"""Counts up whenever a key of the document changes its meaning."""
_CANNOT = frozenset(
    name
    for name, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, VLMCompressError)
)
_NOT_RUN = "it has not been run yet"


def summarise(run: Run, tasks: Sequence[Task]) -> dict[str, Any]:
    """Score a run and compare its cases; the content of results.json.

    Answers are scored now. Questions that not all cases have answered yet are left out, as are
    those that failed without any method. Numbers have six digits. The same run gives the same
    document.

    Args:
        run: finished or not.
        tasks: those of the run; others are passed over.

    Raises:
        VLMCompressError: a task of the run is missing or has changed since, `full` could not run,
            or there is no question that all cases have answered.
    """
    known = {task.name: task for task in tasks}
    found: dict[str, Any] = {}
    for described in run.tasks:
        name = described["name"]
        if name not in known:
            raise VLMCompressError(
                f"the run has a task {name!r} that is not given, only {', '.join(known) or 'none'}"
            )
        if known[name].version != described["version"]:
            raise VLMCompressError(
                f"task {name} has version {known[name].version} now, the run asked version "
                f"{described['version']}"
            )
        found[name] = _task(run, known[name])
    content: dict[str, Any] = _short(
        {
            "format": FORMAT,
            "provenance": run.provenance,
            "methods": run.methods,
            "budgets": run.budgets,
            "descriptions": run.tasks,
            "tasks": found,
        }
    )
    return content


def _task(run: Run, task: Task) -> dict[str, Any]:
    asked = task.samples(run.limit_of(task.name), run.provenance["seed"])
    answers = {case: run.answers.get((task.name, case), {}) for case in run.cases[task.name]}
    cannot = {case: reason for case, own in answers.items() if (reason := _cannot(own))}
    full = answers.get(Case(FULL, None), {})
    if Case(FULL, None) in cannot or not full:
        raise VLMCompressError(
            f"task {task.name}: nothing to compare with, since {FULL} could not run: "
            f"{cannot.get(Case(FULL, None), _NOT_RUN)}"
        )
    possible = {case: own for case, own in answers.items() if case not in cannot}
    answered = [one for one in asked if all(one.index in own for own in possible.values())]
    samples = [one for one in answered if full[one.index].error is None]
    if not samples:
        raise VLMCompressError(
            f"task {task.name}: none of its {len(asked)} questions has been answered under all "
            f"{len(possible)} cases"
        )
    scored = {
        case: score(task, samples, case, own, run.times.get((task.name, case), {}))
        for case, own in possible.items()
    }
    counts = {"asked": len(asked), "scored": len(samples), "failed": len(answered) - len(samples)}
    reference = _reference(task, samples, run.provenance["batch"], scored)
    return {
        "version": task.version,
        "medium": task.medium,
        "metric": task.metric,
        "tokens": median(full[one.index].before for one in samples),
        **counts,
        "warnings": _task_warnings(counts, len(asked) - len(answered), reference),
        "commonest": _commonest(task, samples),
        **_compared(reference, scored, cannot, run.budgets),
    }


def _reference(
    task: Task, samples: Sequence[Sample], batch: int, scored: dict[Case, Scored]
) -> Reference:
    """What to compare with; puts the mean of the seeds among the scored."""
    baselines: dict[str | None, dict[str, Scored]] = {}
    for budget in dict.fromkeys(case.budget for case in scored):
        seeds = [scored[case] for seed in RANDOM if (case := Case(seed, budget)) in scored]
        if seeds:
            mean = Case(RANDOM_NAME, budget)
            scored[mean] = together(mean, seeds)
        baselines[budget] = {
            name: scored[case]
            for name in (RANDOM_NAME, "stride", *HARD_BY)
            if (case := Case(name, budget)) in scored
        }
    full, blind = scored[Case(FULL, None)], scored.get(Case(TEXT_ONLY, None))
    return Reference(task, samples, batch, full, blind, baselines)


def _compared(
    reference: Reference,
    scored: Mapping[Case, Scored],
    cannot: Mapping[Case, str],
    budgets: Sequence[str],
) -> dict[str, Any]:
    pairs = [(one, row(one, reference)) for one in scored.values()]
    by_budget = {
        budget: [pair for pair in pairs if pair[0].case.budget == budget]
        for budget in dict.fromkeys([*budgets, *(case.budget for case in scored)])
    }
    for own in by_budget.values():
        compare(own, reference)
    return {
        "kinds": {kind: int(mask.sum()) for kind, mask in reference.kinds.items()},
        "full": part(reference.full.scores),
        "blind": None if reference.blind is None else part(reference.blind.scores),
        "questions": {
            "index": [sample.index for sample in reference.samples],
            "kind": [sample.kind for sample in reference.samples],
            "wording": [sample.wording for sample in reference.samples],
        },
        "budgets": [standings(b, own) for b, own in by_budget.items() if b is not None and own],
        "cases": [found for _, found in pairs]
        + [
            {"method": case.method, "budget": case.budget, "cannot": reason}
            for case, reason in cannot.items()
        ],
    }


def _cannot(answers: Mapping[int, Answer]) -> str | None:
    """Why a case cannot run: every answer is an error that the package raises on purpose."""
    if not answers:
        return _NOT_RUN
    reasons = Counter(answer.error or "" for answer in answers.values())
    if any(reason.split(":")[0] not in _CANNOT for reason in reasons):
        return None
    return reasons.most_common(1)[0][0].partition(": ")[2]


def _commonest(task: Task, samples: Sequence[Sample]) -> float:
    """Score of one who always gives the commonest answer of the kind, without looking."""
    answers: dict[str, Counter[str]] = {}
    for sample in samples:
        answers.setdefault(sample.kind, Counter())[sample.answers[0]] += 1
    guesses = {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}
    return fmean(task.score(sample, guesses[sample.kind]) for sample in samples)


def _task_warnings(counts: Mapping[str, int], missing: int, reference: Reference) -> Iterable[str]:
    found = []
    if missing:
        found.append(
            f"the run is not complete: {missing} of {counts['asked']} questions are not answered "
            "under every case yet and are left out"
        )
    if counts["failed"]:
        found.append(
            f"{counts['failed']} of {counts['asked']} questions failed without any method and are "
            "left out"
        )
    if reference.blind is not None:
        full, blind = reference.full.scores, reference.blind.scores
        if statistics.retained(full, blind, full) is None:
            found.append(
                "with its images the model is not significantly better than without: the task "
                "does not show what a method loses"
            )
    return found


def _short(value: Any) -> Any:
    """The document with floats of six significant digits, which every platform computes alike."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(one) for one in value]
    return value
