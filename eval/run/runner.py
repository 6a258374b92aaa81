"""Ask a model all questions under all cases, in batches, in one process or several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.eval.run.answering import Batch, Outcome, answer
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.run.store import ANSWERS, TIMES, Key, Store
from vlmcompress.eval.tasks.task import Sample, Task

Progress = Callable[[int, str], None]
"""Called with answers that are done now, and what was run."""


@dataclass(frozen=True)
class Job:
    """A task, its samples, and the cases that answer them."""

    task: Task
    samples: Sequence[Sample]
    cases: Sequence[Case]


@dataclass(frozen=True)
class Share:
    """Which part of the batches is this process's."""

    rank: int = 0
    of: int = 1


@dataclass(frozen=True)
class Piece:
    """A batch, its number within the task, and the cases that have yet to answer some of it."""

    task: Task
    number: int
    samples: Sequence[Sample]
    missing: Mapping[Case, frozenset[int]]
    """Indices of samples without an answer."""

    @property
    def answers(self) -> int:
        """How many there will be; a batch is always answered as a whole."""
        return len(self.samples) * len(self.missing)


def pieces(jobs: Sequence[Job], size: int, share: Share, done: Container[Key]) -> list[Piece]:
    """The questions that a process still has to ask.

    What is in a batch does not depend on how many processes there are or what is done already, for
    how far a row is padded, and so the last bits of its logits, depends on its neighbors.
    """
    found = []
    turn = 0
    for job in jobs:
        for number, start in enumerate(range(0, len(job.samples), size)):
            samples = job.samples[start : start + size]
            missing = {
                case: frozenset(s.index for s in samples if (s.task, s.index, case) not in done)
                for case in job.cases
            }
            missing = {case: indices for case, indices in missing.items() if indices}
            if turn % share.of == share.rank and missing:
                found.append(Piece(job.task, number, samples, missing))
            turn += 1
    return found


def run(
    model: Any,
    processor: Any,
    work: Sequence[Piece],
    store: Store,
    progress: Progress,
    max_memory: int | str | None = None,
) -> None:
    """Answer what is missing.

    All cases answer a batch before the next is read: what is measured at one time is compared, and
    a run that is stopped has asked all cases the same.

    Args:
        model: not compressed.
        processor: its own.
        work: of `pieces`.
        store: where the answers go.
        progress: hears of every case of a batch.
        max_memory: see `compress`.
    """
    for place, piece in enumerate(work):
        batch = Batch(model, processor, piece.samples, max_memory)
        for case, missing in piece.missing.items():
            lines, times = _run_case(model, processor, batch, case, piece.task)
            store.append(ANSWERS, (line for line in lines if line["index"] in missing))
            if times is not None:
                warm_up = place == 0  # of this process, whose first calls take longer
                store.append(TIMES, [{"batch": piece.number, "warm_up": warm_up, **times}])
            progress(len(piece.samples), f"{piece.task.name}: {case}")


def check_budgets(
    model: Any, processor: Any, jobs: Sequence[Job], max_memory: int | str | None = None
) -> None:
    """Raise unless each budget lets some method answer the first question of each task.

    One is enough: which methods cannot meet a budget is part of the result.

    Raises:
        VLMCompressError: none can; the message says what the last one said.
    """
    for job in jobs:
        batch = Batch(model, processor, job.samples[:1], max_memory)
        for budget in dict.fromkeys(case.budget for case in job.cases if case.budget is not None):
            at_budget = [case for case in job.cases if case.budget == budget]
            reason = _why_none(model, processor, batch, at_budget, job.task)
            if reason is not None:
                raise VLMCompressError(f"no method can run at budget {budget}: {reason}")


def _why_none(
    model: Any, processor: Any, batch: Batch, at_budget: Sequence[Case], task: Task
) -> str | None:
    """What the last case said; None as soon as one runs, or where the question is at fault."""
    reason = None
    for case in at_budget:
        try:
            inputs = batch.inputs(case)
        except Exception:
            return None  # of the question, which is reported with its answer
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer(model, processor, inputs, case, batch.max_memory, max_new_tokens=1)
        except VLMCompressError as error:
            reason = str(error)
        else:
            return None
    return reason


def _run_case(
    model: Any, processor: Any, batch: Batch, case: Case, task: Task
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Lines for the answers, and one for the time unless the batch failed.

    A batch that fails is asked again one by one, so that one bad file does not cost its neighbors,
    unless its first sample shows that the method cannot run at all.
    """
    about = {"task": task.name, "method": case.method, "budget": case.budget}
    try:
        found = _answer(model, processor, batch, case, task)
    except Exception as error:
        return _failed(model, processor, batch, case, task, error), None
    lines = [
        {
            **about,
            "index": sample.index,
            "answer": found.answers[row],
            "images": found.images[row],
            "tokens": [found.before[row], round(found.mean[row], 6)],
        }
        for row, sample in enumerate(batch.samples)
    ]
    times = {"seconds": found.seconds, "milliseconds": found.milliseconds}
    return lines, about | times | {"n": len(batch.samples)}


def _failed(
    model: Any, processor: Any, batch: Batch, case: Case, task: Task, error: Exception
) -> list[dict[str, Any]]:
    """Lines of a batch that failed as a whole: each sample alone, or the same error for all."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    about = {"task": task.name, "method": case.method, "budget": case.budget, "error": text}
    first, *others = batch.samples
    if not others:
        return [about | {"index": first.index}]

    def alone(sample: Sample) -> list[dict[str, Any]]:
        single = Batch(model, processor, [sample], batch.max_memory)
        return _run_case(model, processor, single, case, task)[0]

    lines = alone(first)
    if lines[0].get("error") == text and not isinstance(error, MediaError):
        return lines + [about | {"index": one.index} for one in others]
    return lines + [line for one in others for line in alone(one)]


def _answer(model: Any, processor: Any, batch: Batch, case: Case, task: Task) -> Outcome:
    inputs = batch.inputs(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, the same at every call
        return answer(
            model,
            processor,
            inputs,
            case,
            batch.max_memory,
            max_new_tokens=task.max_new_tokens,
        )
