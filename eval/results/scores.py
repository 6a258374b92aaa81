"""Scores of a case, question by question, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmcompress.eval.results.read import Answer
from vlmcompress.eval.results.statistics import Scores
from vlmcompress.eval.run.cases import FULL, ONE_FRAME, TEXT_ONLY, Case
from vlmcompress.eval.tasks.task import Sample, Task

PROBES = (FULL, TEXT_ONLY, ONE_FRAME)
"""What bounds the methods, and is none."""
RANDOM_NAME = "random"
"""Stands for the mean of `RANDOM`."""
HARD_BY = ("downsample", "pool")
"""What a question must be too hard for to be in the hard group; the second where the first cannot
run."""


@dataclass(frozen=True)
class Scored:
    """Answers of a case with their scores, in the order of the questions.

    Attributes:
        case: what was run; "random" without a seed stands for all its seeds.
        runs: answers of the case, or of each seed.
        scores: [n] of 0 to 1; the mean over the seeds.
        times: seconds a question by number of the batch; the mean over the seeds.
    """

    case: Case
    runs: Sequence[Sequence[Answer]]
    scores: Scores
    times: Mapping[int, float]


@dataclass(frozen=True)
class Reference:
    """What the cases of a task are compared on.

    Attributes:
        task: scores the answers.
        samples: that are compared, by ascending index.
        batch: samples of a batch.
        full: of the model without any method.
        blind: of the model without its images; None where it cannot run so.
        baselines: by budget what else is compared with: "random", "stride" and those of `HARD_BY`.
    """

    task: Task
    samples: Sequence[Sample]
    batch: int
    full: Scored
    blind: Scored | None
    baselines: Mapping[str | None, Mapping[str, Scored]]

    def groups(self, names: Iterable[Any]) -> dict[Any, npt.NDArray[np.bool_]]:
        """A mask [n] for each of the kinds, or wordings, of the samples."""
        listed = np.array(list(names), dtype=object)
        return {name: listed == name for name in dict.fromkeys(listed.tolist())}

    @property
    def kinds(self) -> dict[str, npt.NDArray[np.bool_]]:
        """A mask [n] for each kind, in the order in which they are asked first."""
        return self.groups(sample.kind for sample in self.samples)

    @property
    def wordings(self) -> dict[int, npt.NDArray[np.bool_]]:
        """A mask [n] for each wording."""
        return self.groups(sample.wording for sample in self.samples)


def score(
    task: Task,
    samples: Sequence[Sample],
    case: Case,
    answers: Mapping[int, Answer],
    times: Mapping[int, float],
) -> Scored:
    """Score what a case answered; a sample that failed has 0."""
    own = [answers[sample.index] for sample in samples]
    scores = [
        0.0 if answer.error is not None else task.score(sample, answer.text)
        for sample, answer in zip(samples, own, strict=True)
    ]
    return Scored(case, [own], np.array(scores, dtype=np.float64), times)


def together(case: Case, parts: Sequence[Scored]) -> Scored:
    """The mean of runs that differ in the seed only."""
    batches = sorted(set.intersection(*(set(part.times) for part in parts)))
    return Scored(
        case,
        [run for part in parts for run in part.runs],
        np.mean([part.scores for part in parts], axis=0),
        {batch: float(np.mean([part.times[batch] for part in parts])) for batch in batches},
    )
