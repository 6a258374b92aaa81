"""The race itself: batch by batch, all candidates beside the whole model, within a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.results.rows import asked_tokens, is_over
from vlmcompress.eval.run.answering import Batch
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY, Case
from vlmcompress.eval.run.store import ANSWERS, TIMES
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.files.untrusted import one_line
from vlmcompress.tuning.likeness import Reference, likeness, reference
from vlmcompress.tuning.race import Measured, Objective, leaving
from vlmcompress.tuning.samples import TASK, in_batches

WHOLE, BLIND = Case(FULL, None), Case(TEXT_ONLY, None)
"""Beside the candidates in every batch: what they are timed against, and what needs no picture."""
Progress = Callable[[int, str], None]
"""Called with measurements that are done or not needed any more, and what was measured."""


class Lines(Protocol):
    """Where measurements are kept, see `vlmcompress.eval.run.store.Store`."""

    def append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None: ...


class Nowhere:
    """For a race that nobody goes on with."""

    def append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Forget the lines."""


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
    batch: int = 16
    longest: int = 32
    minutes: float | None = None


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
    the race, each time beginning with another one. After 2, 4, 8, ... batches some leave.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Sample],
        plan: Plan,
        lines: Lines | None = None,
    ) -> None:
        self._model, self._processor, self._lines = model, processor, lines or Nowhere()
        self.plan, self.batches = plan, in_batches(samples, plan.batch)
        self.left: dict[Case, Left] = {}
        self.done = 0
        """Batches that every candidate in the race has met."""
        self._known: dict[Case, dict[int, Mapping[str, Any]]] = {}
        self._times: dict[Case, dict[int, float]] = {}

    @property
    def steps(self) -> int:
        """Measurements, if nobody leaves."""
        return len(self.batches) * self._per_batch

    @property
    def _per_batch(self) -> int:
        return 2 + len(self.plan.budgets) * len(self.plan.candidates)

    def remember(
        self, answers: Iterator[Mapping[str, Any]], times: Iterator[Mapping[str, Any]]
    ) -> None:
        """Take over what an earlier run of the same plan has measured."""
        for line in answers:
            self._known.setdefault(_case(line), {})[line["index"]] = line
        for line in times:
            self._times.setdefault(_case(line), {})[line["batch"]] = line["seconds"] / line["n"]

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
        if not self._indices(self.done):
            raise VLMCompressError(f"nothing can be read: {'; '.join(self.unusable()[:3])}")

    def field(self, budget: str) -> dict[str, Measured]:
        """Who is in the race at a budget, in the order of the plan."""
        cases = [Case(spec, budget) for spec in self.plan.candidates]
        return {one.method: self.measured(one) for one in cases if one not in self.left}

    def ran(self, case: Case) -> bool:
        """Whether a case has no error."""
        known = self._known.get(case, {})
        return all("error" not in known[index] for index in self._indices(self.done))

    def measured(self, case: Case) -> Measured:
        """What is known of a case, up to where it left."""
        until = self.left[case].batches if case in self.left else self.done
        lines = [self._known[case][index] for index in self._indices(until)]
        mine, whole = self._times.get(case, {}), self._times.get(WHOLE, {})
        timed = [b for b in range(until) if b in mine and b in whole]
        return Measured(
            np.array([line["kl"] for line in lines]),
            np.array([float(line["agrees"]) for line in lines]),
            # The first calls of a process take longer.
            [whole[b] / mine[b] for b in (timed[1:] or timed)],
        )

    def seconds(self, case: Case) -> list[float]:
        """Per batch but the first, to the first token of a question."""
        timed = list(self._times.get(case, {}).values())
        return timed[1:] or timed

    def tokens(self, case: Case) -> dict[str, float]:
        """Means over questions: visual tokens before, those kept, images."""
        known = self._known[case]
        lines = [known[i] for i in self._indices(self.done) if "tokens" in known.get(i, ())]
        parts = np.array([[*line["tokens"], line["images"]] for line in lines]).mean(0)
        return dict(zip(("before", "kept", "images"), parts.tolist(), strict=True))

    def unusable(self) -> list[str]:
        """What could not be read or asked, and why."""
        lines = self._known.get(WHOLE, {}).values()
        return [line["error"] for line in lines if "error" in line]

    def _indices(self, batches: int) -> list[int]:
        """Of the questions of the first batches that could be asked."""
        known = self._known.get(WHOLE, {})
        asked = [sample.index for batch in self.batches[:batches] for sample in batch]
        return [index for index in asked if "error" not in known[index]]

    def _cases(self, number: int) -> list[Case]:
        """What meets a batch; each batch begins one further on, so that a drift hits all alike."""
        every = [WHOLE, BLIND] + [
            Case(spec, budget) for budget in self.plan.budgets for spec in self.plan.candidates
        ]
        cases = [case for case in every if case not in self.left]
        first = number % len(cases)
        return cases[first:] + cases[:first]

    def _meet(self, number: int, progress: Progress, late: Callable[[], bool]) -> bool:
        """Let every case meet a batch; False where time is up before."""
        samples, cases = self.batches[number], self._cases(number)
        missing = [case for case in cases if not self._has(case, samples)]
        progress(self._per_batch - len(missing), "measured before")
        if not missing:
            return True
        if late():
            return False
        batch = self._ready(samples)
        if batch is None:
            progress(len(missing), "nothing can be read")
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers, the same at every call
            inputs = batch.inputs(WHOLE)
            whole = reference(self._model, self._processor, inputs, self.plan.longest)
            for case in missing:
                if late():
                    return False
                self._measure(number, batch.samples, inputs, case, whole)
                progress(1, f"{self.done * self.plan.batch} questions: {case}")
        return True

    def _has(self, case: Case, samples: Sequence[Sample]) -> bool:
        whole, known = self._known.get(WHOLE, {}), self._known.get(case, {})
        return all(one.index in known or "error" in whole.get(one.index, ()) for one in samples)

    def _ready(self, samples: Sequence[Sample]) -> Batch | None:
        """Those that can be read and asked, read already; the others are noted."""
        found = [one for sample in samples for one in self._read(sample)]
        try:
            batch = Batch(self._model, self._processor, found)
            return batch if found and batch.inputs(WHOLE) else None
        except VLMCompressError as error:
            if len(found) == 1:
                self._note(WHOLE, [{"index": found[0].index, "error": _said(found[0], error)}])
                return None
        alone = [one for one in found if self._ready([one]) is not None]
        return self._ready(alone) if len(alone) < len(found) else None

    def _read(self, sample: Sample) -> list[Sample]:
        try:
            media = sample.load()
        except VLMCompressError as error:
            self._note(WHOLE, [{"index": sample.index, "error": _said(sample, error)}])
            return []
        return [replace(sample, load=lambda: media)]

    def _measure(
        self,
        number: int,
        samples: Sequence[Sample],
        inputs: Any,
        case: Case,
        whole: Reference,
    ) -> None:
        try:
            found = likeness(self._model, self._processor, inputs, case, whole)
        except Exception as error:
            if case == WHOLE:
                raise
            text = f"{type(error).__name__}: {one_line(error)}"
            self._note(case, [{"index": one.index, "error": text} for one in samples])
            return
        self._note(
            case,
            [
                {
                    "index": sample.index,
                    "kl": round(found.kl[row], 8),
                    "agrees": found.agrees[row],
                    "tokens": [found.before[row], round(found.mean[row], 6)],
                    "images": found.images[row],
                }
                for row, sample in enumerate(samples)
            ],
        )
        self._times.setdefault(case, {})[number] = found.seconds / len(samples)
        timed = {"batch": number, "warm_up": number == 0, "seconds": found.seconds}
        self._lines.append(TIMES, [_about(case) | timed | {"n": len(samples)}])

    def _note(self, case: Case, lines: Sequence[dict[str, Any]]) -> None:
        known = self._known.setdefault(case, {})
        known.update({line["index"]: line for line in lines})
        self._lines.append(ANSWERS, [_about(case) | line for line in lines])

    def _sort_out(self) -> None:
        """Take out who cannot be in the race, and at a rung who is behind."""
        for budget in self.plan.budgets if self._indices(self.done) else ():
            for spec in self.plan.candidates:
                case = Case(spec, budget)
                why = None if case in self.left else self._unfit(case)
                if why is not None:
                    self.left[case] = Left(self.done, why, unfit=True)
            field = self.field(budget)
            if not field:
                reasons = [self.left[Case(s, budget)].reason for s in self.plan.candidates]
                raise VLMCompressError(f"no candidate can run at budget {budget}: {reasons[-1]}")
            more = self.done < len(self.batches)
            if more and self.done > 1 and self.done & (self.done - 1) == 0:
                for spec, why in leaving(field, self.plan.objective).items():
                    self.left[Case(spec, budget)] = Left(self.done, why)

    def _unfit(self, case: Case) -> str | None:
        """Why a case has no result: it failed, keeps more than the budget, or nothing."""
        known = self._known[case]
        for index in self._indices(self.done):
            if "error" in known[index]:
                return str(known[index]["error"])
        tokens = self.tokens(case)
        target = asked_tokens(case.budget, tokens)
        assert target is not None  # counts per frame and costs are refused before
        if is_over(tokens["kept"], target):
            return f"keeps {tokens['kept']:.4g} tokens, the budget leaves {target:.4g}"
        return None if tokens["kept"] else "keeps no visual token"


def _about(case: Case) -> dict[str, Any]:
    return {"task": TASK, "method": case.method, "budget": case.budget}


def _case(line: Mapping[str, Any]) -> Case:
    return Case(line["method"], line["budget"])


def _said(sample: Sample, error: VLMCompressError) -> str:
    where, text = str(sample.extra), one_line(error)
    return text if where in text else f"{where}: {text}"
