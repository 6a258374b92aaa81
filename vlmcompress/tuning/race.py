"""Successive halving with paired tests: who stays in the race, and who leads it.

A candidate scores between 0 and 1 for each question: the mean of whether its greedy answer is that
of the whole model, and of exp(-KL), which is finer. Where the whole model is sure of a word,
exp(-KL) is the probability that the candidate gives to this word; unlike KL itself it is bounded,
so that a few answers of enormous KL do not decide.

Source of the scheme: Jamieson and Talwalkar, 2016 (arXiv 1502.07943), with candidates that leave by
a paired test against the leader as in racing (Maron and Moore, 1994).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.statistics import SIGNIFICANT, Scores

Objective = Literal["accuracy", "time", "pareto"]
OBJECTIVES: tuple[Objective, ...] = ("accuracy", "time", "pareto")
LEAST = 4
"""Candidates that halving leaves."""
_FLIPS = 999
"""Sign flips of a test in the race; what is beyond them is the t-test's."""


@dataclass(frozen=True)
class Measured:
    """A candidate at one budget, on the questions so far.

    Attributes:
        kl: [n] nats, mean over the tokens of each answer.
        agrees: [n] 1 where the greedy answer is that of the whole model, else 0.
        speed: per batch, times as fast to the first token as the whole model on the same batch.
    """

    kl: Scores
    agrees: Scores
    speed: Sequence[float]

    @property
    def scores(self) -> Scores:
        """[n] within 0 to 1, see above."""
        return np.asarray((self.agrees + np.exp(-self.kl)) / 2, dtype=np.float64)

    @property
    def fast(self) -> float:
        """Median of `speed`; 0 where nothing was timed."""
        return median(self.speed) if self.speed else 0.0


Field = Mapping[str, Measured]
"""Candidates by spec, in the order that decides between equal ones."""


def ranked(field: Field) -> list[str]:
    """The candidates by falling mean score; of equal ones the one that stands first."""
    return sorted(field, key=lambda spec: -float(field[spec].scores.mean()))


def worse(field: Field, than: str) -> dict[str, float]:
    """p of each other candidate that is significantly worse than one, paired, corrected by Holm."""
    others = [spec for spec in field if spec != than]
    p_values = statistics.holm([_p(field[spec], field[than]) for spec in others])
    return {spec: p for spec, p in zip(others, p_values, strict=True) if p < SIGNIFICANT}


def leaving(field: Field, objective: Objective) -> dict[str, str]:
    """Who leaves at a rung, and why.

    Those leave that are significantly worse than the leader; of "pareto" than the best of those
    that are no slower. For "accuracy" those leave as well that are the same as one before them by
    another name, and at most half of the others stays: that is no finding about the last of them,
    and their reason says so.

    Args:
        field: all that are in the race, on the same questions.
        objective: what is looked for.
    """
    if objective == "pareto":
        return _dominated(field, ranked(field))
    alike = twins(field) if objective == "accuracy" else {}
    left = {spec: f"no other than {first} on any question" for spec, first in alike.items()}
    field = {spec: one for spec, one in field.items() if spec not in alike}
    order = ranked(field)
    out = worse(field, order[0])
    left |= {spec: f"worse than {order[0]}, p {p:.2g}" for spec, p in out.items()}
    stay = [spec for spec in order if spec not in left]
    if objective == "accuracy":
        most = max(LEAST, -(-len(field) // 2))
        left |= dict.fromkeys(stay[most:], "behind half of the field, not significantly worse")
    return left


def twins(field: Field) -> dict[str, str]:
    """Who answers all questions exactly as another one: itself -> the first of its kind.

    One method under two names, such as a default that is also given, would take two of the places
    that halving leaves. Equal to the last digit that is kept, on every question.
    """
    first: dict[bytes, str] = {}
    return {
        spec: name
        for spec, one in field.items()
        if (name := first.setdefault(one.kl.tobytes() + one.agrees.tobytes(), spec)) != spec
    }


def taken(field: Field, objective: Objective) -> str:
    """Who wins: the first in the ranking, for "time" the fastest that is not worse than it."""
    first, *others = ranked(field)
    if objective != "time":
        return first
    out = worse(field, first)
    return max([first, *(s for s in others if s not in out)], key=lambda spec: field[spec].fast)


def front(field: Field) -> list[str]:
    """Those that no other is both better and faster than, the best first."""
    found: list[str] = []
    fastest = -1.0
    for spec in ranked(field):
        if field[spec].fast > fastest:
            found.append(spec)
            fastest = field[spec].fast
    return found


def _dominated(field: Field, order: Sequence[str]) -> dict[str, str]:
    left: dict[str, str] = {}
    for spec in order:
        faster = [one for one in order[: order.index(spec)] if field[one].fast >= field[spec].fast]
        if not faster:
            continue
        pair = {one: field[one] for one in (faster[0], spec)}
        # Corrected as if each could have been asked about.
        p = min(1.0, _p(pair[spec], pair[faster[0]]) * (len(order) - 1))
        if p < SIGNIFICANT:
            left[spec] = f"worse than {faster[0]}, which is no slower, p {p:.2g}"
    return left


def _p(one: Measured, other: Measured) -> float:
    return statistics.paired_test(one.scores, other.scores, alternative="less", resamples=_FLIPS)
