"""What one case came to: accuracy, tokens, time, and comparisons with others."""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmcompress.budget.budget import Budget
from vlmcompress.eval.metrics import metrics
from vlmcompress.eval.results import sanity as checks
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.scores import HARD_BY, PROBES, RANDOM_NAME, Reference, Scored
from vlmcompress.eval.results.statistics import Scores
from vlmcompress.eval.run.cases import FULL
from vlmcompress.eval.tasks.task import Task
from vlmcompress.tokens import Grid

AGAINST = (FULL, RANDOM_NAME, "stride")
"""What a method is compared with."""
_YES_NO = frozenset({"yes", "no"})


def row(scored: Scored, reference: Reference) -> dict[str, Any]:
    """All figures of a case but those that need the other methods at its budget."""
    case, scores = scored.case, scored.scores
    kept = tokens(scored)
    target = None if kept is None else asked_tokens(case.budget, kept)
    return {
        "method": case.method,
        "budget": case.budget,
        "accuracy": float(scores.mean()),
        "interval": bounds(statistics.proportion(scores)),
        "tokens": kept,
        "target": target,
        "over_budget": kept is not None and target is not None and is_over(kept["kept"], target),
        "failed": sum(
            any(answer.error for answer in each) for each in zip(*scored.runs, strict=True)
        ),
        "by_kind": {kind: part(scores[mask]) for kind, mask in reference.kinds.items()},
        "by_wording": {
            str(wording): float(scores[mask].mean()) for wording, mask in reference.wordings.items()
        },
        "retained": _retained(scored, reference),
        "hard": _hard(scored, reference),
        "changed": _changed(scored, reference.full),
        "yes_no": _yes_no(scored, reference),
        **_speed(scored, reference.full),
        "warnings": _warnings(scored, reference),
        "scores": _packed(scores),
    }


def part(scores: Scores) -> dict[str, Any]:
    """Accuracy with its interval on some of the questions."""
    interval = bounds(statistics.proportion(scores))
    return {"accuracy": float(scores.mean()), "interval": interval, "n": len(scores)}


def comparisons(scored: Scored, reference: Reference) -> dict[str, dict[str, Any]]:
    """The case against each of `AGAINST` that ran at its budget, with p not yet corrected."""
    others = {FULL: reference.full, **reference.baselines.get(scored.case.budget, {})}
    return {
        name: {
            "difference": float((scored.scores - others[name].scores).mean()),
            "interval": bounds(statistics.mean_difference(scored.scores, others[name].scores)),
            "p": statistics.paired_test(scored.scores, others[name].scores),
        }
        for name in AGAINST
        if name in others and others[name].case != scored.case
    }


def wording_p(scored: Scored, reference: Reference) -> float | None:
    """Whether what a method loses depends on the wording; None with one wording."""
    if len(reference.wordings) < 2:
        return None
    wordings = [sample.wording for sample in reference.samples]
    return statistics.wording_gap(scored.scores - reference.full.scores, wordings)


def asked_tokens(budget: str | None, of: Mapping[str, float]) -> float | None:
    """What a budget comes to for a sample; None for a cost, a count per frame, or no budget.

    Args:
        budget: of each image.
        of: `tokens` of a case; the images of a sample are taken to be of one size.
    """
    if budget is None or not of["images"]:
        return None
    parsed = Budget.parse(budget)
    if parsed.is_cost or (parsed.per_frame and parsed.unit == "tokens"):
        return None
    return of["images"] * parsed.tokens(Grid(1, 1, round(of["before"] / of["images"])))


def tokens(scored: Scored) -> dict[str, float] | None:
    """Means over samples; None where every sample failed.

    Visual tokens before the method, those really kept, and images.
    """
    answered = [answer for run in scored.runs for answer in run if answer.error is None]
    if not answered:
        return None
    return {
        "before": plain.fmean(answer.before for answer in answered),
        "kept": plain.fmean(answer.mean for answer in answered),
        "images": plain.fmean(answer.images for answer in answered),
    }


def bounds(interval: statistics.Interval) -> list[float]:
    """For JSON."""
    return [float(interval.low), float(interval.high)]


def is_over(kept: float, target: float) -> bool:
    """Whether a case keeps more tokens than its budget, beyond rounding."""
    return kept > target + max(checks.FAR_OFF * target, checks.ONE_TOKEN)


def _retained(scored: Scored, reference: Reference) -> dict[str, Any] | None:
    if reference.blind is None:
        return None
    found = statistics.retained(scored.scores, reference.blind.scores, reference.full.scores)
    return None if found is None else {"value": float(found[0]), "interval": bounds(found[1])}


def _hard(scored: Scored, reference: Reference) -> dict[str, Any] | None:
    """Accuracy where `full` is right and shrinking the image is not (VTC-Bench, group A)."""
    others = reference.baselines.get(scored.case.budget, {})
    by = next((name for name in HARD_BY if name in others), None)
    if by is None or scored.case.method == by:
        return None
    mask = (reference.full.scores >= 0.5) & (others[by].scores < 0.5)
    accuracy = float(scored.scores[mask].mean()) if mask.any() else None
    return {"n": int(mask.sum()), "accuracy": accuracy, "by": by}


def _changed(scored: Scored, full: Scored) -> float:
    """Share of the answers that are not those of `full`."""
    reference = [answer.text for answer in full.runs[0]]
    return plain.fmean(
        answer.text != other
        for run in scored.runs
        for answer, other in zip(run, reference, strict=True)
    )


def _yes_no(scored: Scored, reference: Reference) -> dict[str, dict[str, float]] | None:
    """F1 and the like of each kind that is answered with yes or no; means over the seeds."""
    targets = np.array([sample.answers[0] for sample in reference.samples], dtype=object)
    found = {}
    for kind, mask in reference.kinds.items():
        places = np.flatnonzero(mask).tolist()
        wanted = targets[mask].tolist()
        if is_yes_no(reference.task, wanted):
            each = [metrics.f1([run[i].text for i in places], wanted) for run in scored.runs]
            found[kind] = {name: plain.fmean(one[name] for one in each) for name in each[0]}
    return found or None


def is_yes_no(task: Task, targets: Sequence[str]) -> bool:
    """Whether these questions are answered with yes or no."""
    return task.metric == "yes_no" or {target.strip().lower() for target in targets} <= _YES_NO


def _speed(scored: Scored, full: Scored) -> dict[str, Any]:
    """Seconds a question over batches, and how many times faster than `full` on the same batch."""
    times = list(scored.times.values())
    if not times:
        return {"seconds": None, "speed": None}
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    ratios = [full.times[b] / scored.times[b] for b in scored.times if b in full.times]
    return {
        "seconds": {"median": median, "low": low, "high": high, "batches": len(times)},
        "speed": plain.median(ratios) if ratios else None,
    }


def _warnings(scored: Scored, reference: Reference) -> list[str]:
    """What is wrong with a case; the bounds and the mean of the seeds are not looked at."""
    if scored.case.method in PROBES or len(scored.runs) > 1:
        return []
    run = scored.runs[0]
    answered = [i for i, answer in enumerate(run) if answer.error is None]
    found = []
    if len(answered) < len(run):
        reasons = sorted({answer.error for answer in run if answer.error is not None})
        found.append(
            f"{scored.case} failed on {len(run) - len(answered)} of {len(run)} questions, which "
            f"count as wrong: {reasons[0]}"
        )
    if answered:
        found += checks.warnings(_observed(scored, reference, answered))
    return found


def _observed(scored: Scored, reference: Reference, answered: Sequence[int]) -> checks.Observed:
    run, full = scored.runs[0], reference.full.runs[0]
    samples = [reference.samples[i] for i in answered]
    return checks.Observed(
        case=str(scored.case),
        answers=[run[i].text for i in answered],
        full=[full[i].text for i in answered],
        scores=scored.scores[answered],
        full_scores=reference.full.scores[answered],
        kinds=[sample.kind for sample in samples],
        batches=[sample.index // reference.batch for sample in samples],
        before=[run[i].before for i in answered],
        mean=[run[i].mean for i in answered],
        budget=scored.case.budget,
        images=[run[i].images for i in answered],
    )


def _packed(scores: Scores) -> str | list[float]:
    """A letter for each question where all are right or wrong."""
    if np.isin(scores, (0, 1)).all():
        return "".join(str(int(score)) for score in scores)
    return [round(float(score), 4) for score in scores]
