"""Questions of the built-in tasks put to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmcompress.eval.run.answering import Batch, answer
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.tasks.task import Sample

SEED = 50
"""Far from the worlds of the committed results."""


def questions(task: str, number: int) -> list[Sample]:
    """The first questions of a task about other worlds than those of the committed results."""
    return list(load_tasks([task])[0].samples(number, SEED))


def answers(
    loaded: tuple[Any, Any], samples: Sequence[Sample], case: Case, batch: int = 42
) -> list[str]:
    """What a model and its processor say under a case."""
    found: list[str] = []
    for start in range(0, len(samples), batch):
        part = Batch(*loaded, samples[start : start + batch])
        found += answer(*loaded, part.inputs(case), case, max_new_tokens=6).answers
    return found


def accuracy(
    loaded: tuple[Any, Any], samples: Sequence[Sample], method: str, budget: str | None = None
) -> dict[str, float]:
    """Share of right answers of every kind, and of "all"."""
    given = answers(loaded, samples, Case(method, budget))
    pairs = zip(given, samples, strict=True)
    right = np.array([text == sample.answers[0] for text, sample in pairs])
    kinds = np.array([sample.kind for sample in samples])
    return {"all": right.mean(), **{kind: right[kinds == kind].mean() for kind in set(kinds)}}
