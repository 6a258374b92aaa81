"""Reads the folder of a run: answers, tokens, errors and times, by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run import store
from vlmcompress.eval.run.cases import Case


@dataclass(frozen=True)
class Answer:
    """The answer to one sample under one case.

    Attributes:
        text: the answer; empty where the sample failed.
        before: visual tokens of the sample's images before any method.
        mean: those really kept, mean over decoder layers.
        images: images and clips of the sample.
        error: class and message of what went wrong, or None.
    """

    text: str
    before: int = 0
    mean: float = 0.0
    images: int = 1
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """A run that may still be under way.

    Attributes:
        provenance: how it was made.
        methods: as they were asked for.
        budgets: as they were asked for.
        tasks: what each task said of itself, see `Task.describe`.
        cases: of each task, by its name.
        answers: of each task and case, by the index of the sample.
        times: of each task and case, by number of the batch: seconds a question. The first batch
            of every process is left out, for it warms up.
    """

    provenance: Mapping[str, Any]
    methods: Sequence[str]
    budgets: Sequence[str]
    tasks: Sequence[Mapping[str, Any]]
    cases: Mapping[str, Sequence[Case]]
    answers: Mapping[tuple[str, Case], Mapping[int, Answer]]
    times: Mapping[tuple[str, Case], Mapping[int, float]]

    def limit_of(self, name: str) -> int | None:
        """Questions of a task, as they were asked for."""
        limits: dict[str, int | None] = {task["name"]: task["limit"] for task in self.tasks}
        return limits[name]


def read_run(folder: Path) -> Run:
    """Read a folder that a run wrote, finished or not.

    A torn last line of a file is passed over. Of several lines about the same sample and case, or
    the same batch and case, the first counts.

    Raises:
        VLMCompressError: it holds no run, or a file in it is damaged.
    """
    content = store.read_run_json(folder)
    try:
        cases = {
            task: [Case(method, budget) for method, budget in listed]
            for task, listed in content["cases"].items()
        }
        return Run(
            content["provenance"],
            content["methods"],
            content["budgets"],
            content["tasks"],
            cases,
            _answers(folder),
            _times(folder),
        )
    except (KeyError, TypeError) as error:
        raise VLMCompressError(f"folder {str(folder)!r} holds a damaged run: {error!r}") from error


def _answers(folder: Path) -> dict[tuple[str, Case], dict[int, Answer]]:
    found: dict[tuple[str, Case], dict[int, Answer]] = {}
    for line in store.read_lines(folder, store.ANSWERS):
        if "error" in line:
            answer = Answer("", error=line["error"])
        else:
            before, mean = line["tokens"]
            answer = Answer(line["answer"], before, mean, line["images"])
        found.setdefault(_key(line), {}).setdefault(line["index"], answer)
    return found


def _times(folder: Path) -> dict[tuple[str, Case], dict[int, float]]:
    found: dict[tuple[str, Case], dict[int, float]] = {}
    for line in store.read_lines(folder, store.TIMES):
        if not line["warm_up"]:
            each = line["seconds"] / line["n"]
            found.setdefault(_key(line), {}).setdefault(line["batch"], each)
    return {key: dict(sorted(own.items())) for key, own in found.items()}


def _key(line: Mapping[str, Any]) -> tuple[str, Case]:
    return line["task"], Case(line["method"], line["budget"])
