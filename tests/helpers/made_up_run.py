"""A task without pictures, and the folder of a run whose answers are made up."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.read import Run
from vlmcompress.eval.results.read import read_run as read
from vlmcompress.eval.run.cases import FULL, RANDOM, TEXT_ONLY, Case
from vlmcompress.eval.run.store import ANSWERS, RUN, TIMES, Store
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.files import write_json

KINDS = ("color", "shape", "place", "count", "reading", "presence", "relation")
WORDS = {kind: tuple(f"{kind} {k}" for k in range(4)) for kind in KINDS}
WORDS |= {"presence": ("yes", "no"), "relation": ("yes", "no")}
TOKENS = 144
BATCH = 8
LAYERS = 4


def picture() -> list[Image.Image]:
    """A plain one."""
    return [Image.new("RGB", (96, 96), (120, 140, 110))]


@dataclass(frozen=True)
class MadeUp:
    """A task of two wordings whose answers are words, or yes and no."""

    name: str = "pictures"
    size: int = 140
    kinds: Sequence[str] = KINDS
    version: int = 1
    medium: str = "image"
    metric: str = "exact"
    max_new_tokens: int = 4
    wordings: int = 2
    load: Callable[[], Any] = picture

    def samples(self, limit: int | None, seed: int) -> list[Sample]:
        """Kinds and wordings in turn."""
        rng = np.random.default_rng(seed)
        found = []
        for index in range(self.size if limit is None else min(limit, self.size)):
            kind = self.kinds[index % len(self.kinds)]
            wording = index // len(self.kinds) % self.wordings
            word = str(rng.choice(WORDS[kind]))
            question = f"what {kind} is number {index} ?"
            found.append(Sample(self.name, index, kind, wording, question, (word,), self.load))
        return found

    def score(self, sample: Sample, answer: str) -> float:
        """1 where they are the same."""
        return float(answer in sample.answers)

    def describe(self) -> dict[str, Any]:
        """The fields that provenance has."""
        return {"name": self.name, "version": self.version, "metric": self.metric}


Rule = Callable[[Sample], bool]
"""Whether a sample is answered right."""


def chance(rate: float, seed: int) -> Rule:
    """Right for a share of the samples; easy ones are the same for all rules."""

    def right(sample: Sample) -> bool:
        ease = np.random.default_rng([7, sample.index]).random()
        own = np.random.default_rng([seed, sample.index]).random()
        return bool(0.75 * ease + 0.25 * own < rate)

    return right


def wrong(sample: Sample) -> str:
    """An answer of the kind that is not the right one."""
    return next(word for word in WORDS[sample.kind] if word not in sample.answers)


def line(case: Case, sample: Sample, right: bool, kept: float) -> dict[str, Any]:
    """Of answers-*.jsonl."""
    answer = sample.answers[0] if right else wrong(sample)
    about = {"task": sample.task, "index": sample.index, "answer": answer, "images": 1}
    return {**about, "method": case.method, "budget": case.budget, "tokens": [TOKENS, kept]}


def failure(case: Case, sample: Sample, error: str) -> dict[str, Any]:
    """Of answers-*.jsonl."""
    about = {"task": sample.task, "index": sample.index, "error": error}
    return {**about, "method": case.method, "budget": case.budget}


def write(
    folder: Path,
    task: MadeUp,
    lines: Mapping[Case, Sequence[dict[str, Any]]],
    seconds: Mapping[Case, float] | None = None,
    **changes: Any,
) -> Run:
    """Write a folder as a run does, and read it.

    Args:
        folder: is made.
        task: what was asked.
        lines: of every case.
        seconds: a question under each case; 1 where nothing is said.
        changes: of the provenance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {
        **{"command": "vlmcompress eval", "date": "2026-01-02", "commit": "0123456789abcdef"},
        **{"model": "tiny-llava", "weights_sha256": "ab" * 32, "device": "CPU made up"},
        **{"dtype": "float32", "attention": "sdpa", "threads": 2, "processes": 1},
        **{"batch": BATCH, "seed": 0, "versions": {"torch": "2.0"}},
        **changes,
    }
    content = {
        "provenance": provenance,
        "methods": sorted({case.method for case in lines}),
        "budgets": list(dict.fromkeys(case.budget for case in lines if case.budget is not None)),
        "tasks": [{**task.describe(), "limit": None}],
        "cases": {task.name: [[case.method, case.budget] for case in lines]},
    }
    write_json(folder / RUN, content)
    store = Store(folder)
    for case, own in lines.items():
        store.append(ANSWERS, own)
        store.append(TIMES, _times(task, case, (seconds or {}).get(case, 1.0)))
    return read(folder)


def _times(task: MadeUp, case: Case, each: float) -> list[dict[str, Any]]:
    """The first batch takes ten times as long; the others up to a fifth more than said."""
    found = []
    for batch in range(-(-task.size // BATCH)):
        took = BATCH * each * (10 if batch == 0 else 1 + 0.05 * (batch % 5))
        about = {"task": task.name, "method": case.method, "budget": case.budget}
        size = {"batch": batch, "n": BATCH, "warm_up": batch == 0}
        found.append({**about, **size, "seconds": took, "milliseconds": {}})
    return found


def rates(
    task: MadeUp, methods: Mapping[str, float], budgets: Sequence[str], full: float = 0.92
) -> dict[Case, list[dict[str, Any]]]:
    """Lines of `full`, `text-only` and of methods with a rate of right answers at 25 %.

    A method comes nearer to `full` with its budget, and further at less.
    """
    asked = task.samples(None, 0)
    found = {
        Case(FULL, None): [
            line(Case(FULL, None), one, chance(full, 1)(one), TOKENS) for one in asked
        ],
        Case(TEXT_ONLY, None): [
            line(Case(TEXT_ONLY, None), one, chance(0.3, 2)(one), 0.0) for one in asked
        ],
    }
    for number, (method, rate) in enumerate(methods.items()):
        for budget in budgets:
            share = float(budget.rstrip("%")) / 100
            at = full - (full - rate) * (0.25 / share) ** 0.7
            rule = chance(max(at, 0.3), 100 + number)
            case = Case(method, budget)
            kept = max(1, round(share * TOKENS))
            found[case] = [line(case, one, rule(one), kept) for one in asked]
    return found


@contextlib.contextmanager
def few_resamples() -> Iterator[None]:
    """Statistics in less time; what they are worth is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        # statsmodels collects garbage at every correction, which takes longer than all the rest.
        patch.setattr(gc, "collect", lambda *_: 0)
        for name in ("RESAMPLES", "FLIPS", "SHUFFLES"):
            patch.setattr(statistics, name, 199)
        for name in ("mean_difference", "retained"):
            patch.setattr(statistics, name, partial(getattr(statistics, name), resamples=199))
        yield


def baselines() -> dict[str, float]:
    """Rates of what every run carries."""
    seeds = dict.fromkeys(RANDOM, 0.72)
    return {**seeds, "stride": 0.75, "pool": 0.78, "downsample": 0.7, "fastv": 0.5}


TASK = MadeUp()
ASKED = TASK.samples(None, 0)
WHOLE, BLIND = Case(FULL, None), Case(TEXT_ONLY, None)


def few(*cases: Case, full: Rule | None = None) -> dict[Case, list[dict[str, Any]]]:
    """Lines of `full`, `text-only` and some cases with the same rates of right answers."""
    rules = {case: chance(0.7, number) for number, case in enumerate(cases, 10)}
    rules |= {WHOLE: full or chance(0.95, 1), BLIND: chance(0.3, 2)}
    kept = {WHOLE: TOKENS, BLIND: 0}
    return {
        case: [line(case, one, rule(one), kept.get(case, TOKENS // 4)) for one in ASKED]
        for case, rule in rules.items()
    }


def row(found: Mapping[str, Any], method: str, budget: str | None = "25%") -> dict[str, Any]:
    """The row of a case."""
    (one,) = [r for r in found["cases"] if (r["method"], r["budget"]) == (method, budget)]
    return one


def hits(found: Mapping[str, Any], method: str, budget: str | None = "25%") -> np.ndarray:
    """The scores of a case."""
    return np.array([float(score) for score in row(found, method, budget)["scores"]])


def right(lines: Mapping[Case, Sequence[dict[str, Any]]], case: Case) -> np.ndarray:
    return np.array(
        [float(one["answer"] in s.answers) for one, s in zip(lines[case], ASKED, strict=False)]
    )
