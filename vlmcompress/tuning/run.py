"""The race itself: batch by batch, all candidates beside the whole model, within a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlmcompress.defaults import TUNE_BATCH, TUNE_TOKENS
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.answering import Batch
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.tuning.likeness import likeness, reference
from vlmcompress.tuning.measurements import BLIND, WHOLE, Lines, Measurements, Nowhere
from vlmcompress.tuning.race import Field, Measured, Objective, leaving
from vlmcompress.tuning.samples import in_batches

Progress = Callable[[int, str], None]
"""Called with measurements that are done or not needed any more, and what was measured."""

FEWEST = 16
"""Questions before anyone leaves for being behind."""


@dataclass(frozen=True)
class Plan:
    """What is raced.

    Attributes:
        budgets: counts or shares, as `Budget` writes them.
        candidates: specs.
        objective: see `race.leaving` and `race.taken`.
        batch: questions at once.
        longest: tokens of an answer at most.
        minutes: after which the race ends where it is; None for no bound.
    """

    budgets: Sequence[str]
    candidates: Sequence[str]
    objective: Objective = "accuracy"
    batch: int = TUNE_BATCH
    longest: int = TUNE_TOKENS
    minutes: float | None = None

    @property
    def cases(self) -> list[Case]:
        """Every candidate at every budget."""
        return [Case(spec, budget) for budget in self.budgets for spec in self.candidates]


@dataclass(frozen=True)
class Left:
    """Who is out of the race, after how many batches, and why."""

    batches: int
    reason: str
    unfit: bool = False
    """It cannot run, or does not keep to the budget: no result at all."""


class Race:
    """All candidates at all budgets on the same questions.

    A batch is read, answered by the whole model, and then met by every candidate that is still in
    the race, each time beginning with another one. After 1, 2, 4, 8, ... batches some leave.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Sample],
        plan: Plan,
        lines: Lines | None = None,
    ) -> None:
        self._model, self._processor = model, processor
        self.plan, self.batches = plan, in_batches(samples, plan.batch)
        self.kept = Measurements(self.batches, lines or Nowhere())
        self.left: dict[Case, Left] = {}
        self.done = 0
        """Batches that every candidate in the race has met."""

    @property
    def steps(self) -> int:
        """Measurements, if nobody leaves."""
        return len(self.batches) * self._per_batch

    @property
    def _per_batch(self) -> int:
        return 2 + len(self.plan.cases)

    def run(
        self,
        progress: Progress = lambda steps, what: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Race until the questions or the minutes are used up.

        Raises:
            VLMCompressError: no candidate can run at one of the budgets, no picture can be read, or
                the minutes did not do for one batch.
        """
        minutes = self.plan.minutes
        end = None if minutes is None else clock() + 60 * minutes
        for number in range(len(self.batches)):
            if not self._meet(number, progress, lambda: end is not None and clock() >= end):
                break
            self.done = number + 1
            self._sort_out()
        if not self.done:
            raise VLMCompressError(
                f"{minutes:g} minutes are too short for {self._per_batch} measurements of a batch "
                f"of {self.plan.batch}: give more --minutes, or fewer --candidates"
            )
        if not self.kept.asked(self.done):
            raise VLMCompressError(f"nothing can be asked: {self.kept.passed_over()[0]}")

    def field(self, budget: str) -> Field:
        """Who is in the race at a budget, in the order of the plan."""
        cases = [case for case in self.plan.cases if case.budget == budget]
        return {one.method: self.measured(one) for one in cases if one not in self.left}

    def measured(self, case: Case) -> Measured:
        """What is known of a case, up to where it left."""
        return self.kept.measured(case, self.until(case))

    def until(self, case: Case) -> int:
        """Batches that a case has met."""
        return self.left[case].batches if case in self.left else self.done

    def _cases(self, number: int) -> list[Case]:
        """What meets a batch; each batch begins one further on, so that a drift hits all alike."""
        cases = [case for case in (WHOLE, BLIND, *self.plan.cases) if case not in self.left]
        first = number % len(cases)
        return cases[first:] + cases[:first]

    def _meet(self, number: int, progress: Progress, late: Callable[[], bool]) -> bool:
        """Let every case meet a batch; False where time is up before."""
        samples = self.batches[number]
        missing = [case for case in self._cases(number) if not self.kept.has(case, samples)]
        progress(self._per_batch - len(missing), "measured before")
        if missing and late():
            return False
        batch = self._ready(samples) if missing else None
        if batch is None:
            progress(len(missing), "nothing to ask")
            return True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of transformers, the same at every call
                return self._ask(number, batch, missing, progress, late)
        except torch.OutOfMemoryError as error:
            raise VLMCompressError(
                f"no memory for the whole model on {self.plan.batch} questions at once: give a "
                "smaller --batch"
            ) from error

    def _ask(
        self,
        number: int,
        batch: Batch,
        cases: Sequence[Case],
        progress: Progress,
        late: Callable[[], bool],
    ) -> bool:
        inputs = batch.inputs(WHOLE)
        whole = reference(self._model, self._processor, inputs, self.plan.longest)
        for case in cases:
            if late():
                return False
            try:
                found = likeness(self._model, self._processor, inputs, case, whole)
            except Exception as error:
                if case == WHOLE:
                    raise
                self.kept.fail(case, batch.samples, error)
            else:
                self.kept.add(case, number, batch.samples, found)
            progress(1, f"{self.done * self.plan.batch} questions done; {case}")
        return True

    def _ready(self, samples: Sequence[Sample]) -> Batch | None:
        """Those that can be read and asked, read already; the others are passed over."""
        found = [one for sample in samples for one in self._read(sample)]
        try:
            batch = Batch(self._model, self._processor, found)
            return batch if found and batch.inputs(WHOLE) else None
        except VLMCompressError as error:
            if len(found) == 1:
                self.kept.pass_over(found[0], error)
                return None
        alone = [one for one in found if self._ready([one]) is not None]
        return self._ready(alone) if len(alone) < len(found) else None

    def _read(self, sample: Sample) -> list[Sample]:
        try:
            media = sample.load()
        except VLMCompressError as error:
            self.kept.pass_over(sample, error)
            return []
        return [replace(sample, load=lambda: media)]

    def _sort_out(self) -> None:
        """Take out who cannot be in the race, and at a rung who is behind."""
        if not self.kept.asked(self.done):
            return
        for case in self.plan.cases:
            why = None if case in self.left else self.kept.unfit(case, self.done)
            if why is not None:
                self.left[case] = Left(self.done, why, unfit=True)
        for budget in self.plan.budgets:
            self._rung(budget)

    def _is_rung(self) -> bool:
        """After 1, 2, 4, 8, ... batches, but not before a few questions, nor at the end."""
        enough = len(self.kept.asked(self.done)) >= FEWEST
        return enough and self.done < len(self.batches) and self.done & (self.done - 1) == 0

    def _rung(self, budget: str) -> None:
        field = self.field(budget)
        if not field:
            last = self.left[Case(self.plan.candidates[-1], budget)]
            raise VLMCompressError(f"no candidate can run at budget {budget}: {last.reason}")
        if self._is_rung():
            for spec, why in leaving(field, self.plan.objective).items():
                self.left[Case(spec, budget)] = Left(self.done, why)
