"""What was measured of whom on which question, kept as lines that a race can go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.results.rows import asked_tokens, is_over
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY, Case
from vlmcompress.eval.run.store import ANSWERS, TIMES
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.files.untrusted import one_line
from vlmcompress.tuning.likeness import Likeness
from vlmcompress.tuning.race import Measured
from vlmcompress.tuning.samples import TASK

WHOLE, BLIND = Case(FULL, None), Case(TEXT_ONLY, None)
"""Beside the candidates in every batch: what they are timed against, and what needs no picture."""


class Lines(Protocol):
    """Where lines are kept, see `vlmcompress.eval.run.store.Store`."""

    def append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None: ...


class Nowhere:
    """For a race that nobody goes on with."""

    def append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Forget the lines."""


class Measurements:
    """Of all cases on batches of questions.

    A question that the whole model could not be asked counts for nobody.
    """

    def __init__(self, batches: Sequence[Sequence[Sample]], lines: Lines) -> None:
        self._batches, self._lines = batches, lines
        self._known: dict[Case, dict[int, Mapping[str, Any]]] = {}
        self._times: dict[Case, dict[int, float]] = {}

    def remember(
        self, answers: Iterable[Mapping[str, Any]], times: Iterable[Mapping[str, Any]]
    ) -> None:
        """Take over what an earlier run of the same plan has measured."""
        for line in answers:
            self._known.setdefault(_case(line), {})[line["index"]] = line
        for line in times:
            self._times.setdefault(_case(line), {})[line["batch"]] = line["seconds"] / line["n"]

    def add(self, case: Case, number: int, samples: Sequence[Sample], found: Likeness) -> None:
        """A case on a batch."""
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

    def fail(self, case: Case, samples: Sequence[Sample], error: Exception) -> None:
        """A case could not run."""
        name = "" if isinstance(error, VLMCompressError) else f"{type(error).__name__}: "
        text = name + one_line(error)
        self._note(case, [{"index": one.index, "error": text} for one in samples])

    def pass_over(self, sample: Sample, error: VLMCompressError) -> None:
        """A question cannot be read or asked."""
        where, text = str(sample.extra), one_line(error)
        text = text if where in text else f"{where}: {text}"
        if sample.index not in self._known.get(WHOLE, {}):
            self._note(WHOLE, [{"index": sample.index, "error": text}])

    def has(self, case: Case, samples: Sequence[Sample]) -> bool:
        """Whether a case has met all of these that can be asked."""
        whole, known = self._known.get(WHOLE, {}), self._known.get(case, {})
        return all(one.index in known or "error" in whole.get(one.index, ()) for one in samples)

    def asked(self, batches: int) -> list[int]:
        """Indices of the questions of the first batches that could be asked."""
        known = self._known.get(WHOLE, {})
        indices = [sample.index for batch in self._batches[:batches] for sample in batch]
        return [index for index in indices if "error" not in known[index]]

    def passed_over(self) -> list[str]:
        """What could not be read or asked, and why; once, however often it is asked about."""
        lines = self._known.get(WHOLE, {}).values()
        return list(dict.fromkeys(line["error"] for line in lines if "error" in line))

    def error(self, case: Case, batches: int) -> str | None:
        """Why a case could not run on some question of the first batches."""
        known = self._known[case]
        lines = (known[index] for index in self.asked(batches))
        return next((str(line["error"]) for line in lines if "error" in line), None)

    def unfit(self, case: Case, batches: int) -> str | None:
        """Why a case has no result: it failed, keeps more than its budget, or nothing at all."""
        error = self.error(case, batches)
        if error is not None:
            return error
        tokens = self.tokens(case, batches)
        target = asked_tokens(case.budget, tokens)
        assert target is not None  # counts per frame and costs are refused before
        if is_over(tokens["kept"], target):
            return f"keeps {tokens['kept']:.4g} tokens, the budget leaves {target:.4g}"
        return None if tokens["kept"] else "keeps no visual token"

    def measured(self, case: Case, batches: int) -> Measured:
        """What is known of a case on the first batches."""
        lines = [self._known[case][index] for index in self.asked(batches)]
        mine, whole = self._times.get(case, {}), self._times.get(WHOLE, {})
        timed = [number for number in range(batches) if number in mine and number in whole]
        return Measured(
            np.array([line["kl"] for line in lines]),
            np.array([float(line["agrees"]) for line in lines]),
            # The first calls of a process take longer.
            [whole[number] / mine[number] for number in (timed[1:] or timed)],
        )

    def seconds(self, case: Case) -> list[float]:
        """Per batch but the first, of a question up to its first token."""
        timed = list(self._times.get(case, {}).values())
        return timed[1:] or timed

    def tokens(self, case: Case, batches: int) -> dict[str, float]:
        """Means over questions: visual tokens before, those kept, images."""
        lines = [self._known[case][index] for index in self.asked(batches)]
        parts = np.array([[*line["tokens"], line["images"]] for line in lines]).mean(0)
        return dict(zip(("before", "kept", "images"), parts.tolist(), strict=True))

    def _note(self, case: Case, lines: Sequence[dict[str, Any]]) -> None:
        self._known.setdefault(case, {}).update({line["index"]: line for line in lines})
        self._lines.append(ANSWERS, [_about(case) | line for line in lines])


def _about(case: Case) -> dict[str, Any]:
    return {"task": TASK, "method": case.method, "budget": case.budget}


def _case(line: Mapping[str, Any]) -> Case:
    return Case(line["method"], line["budget"])
