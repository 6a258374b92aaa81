"""Baselines: scores that a method once had, and whether it still has them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.scores import RANDOM_NAME
from vlmcompress.eval.results.summary import read_run, summarise
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.run.evaluate import Evaluation, Plan, Watch
from vlmcompress.files import write_json
from vlmcompress.files.untrusted import read_json, said

FORMAT = 1
BEYOND_NOISE = 0.01
"""A method fails below this p of being as good as it was, corrected for the number of cases."""
_PLANNED = ("model", "seed", "batch", "dtype")

Scores = npt.NDArray[np.float64]
Key = tuple[str, Case]


@dataclass(frozen=True)
class Verdict:
    """What `compare` found: a line for each task and case, and whether none is worse."""

    lines: list[str]
    passed: bool


def baselines_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a later run is compared with: the scores of a results.json, question by question."""
    tasks = {
        name: [
            {key: case[key] for key in ("method", "budget", "accuracy", "scores")}
            for case in task["cases"]
            if "scores" in case and case["method"] != RANDOM_NAME  # the mean of seeds is no run
        ]
        for name, task in results["tasks"].items()
    }
    kept = {key: results[key] for key in ("provenance", "methods", "budgets", "descriptions")}
    return {**kept, "tasks": tasks}


def save(file: Path, results: Mapping[str, Any]) -> None:
    """Add a model to a file of baselines, or put it in the place of its earlier figures.

    Raises:
        VLMCompressError: the file holds something else, or cannot be written.
    """
    models = _read(file) if file.exists() else {}
    models[results["provenance"]["model"]] = baselines_of(results)
    write_json(file, {"format": FORMAT, "models": models})


def compare(file: Path, device: str | None, watch: Watch) -> Verdict:
    """Ask again what a file of baselines was made with.

    A case is worse where the one-sided paired test of its scores against those in the file,
    corrected over all cases of the model by Holm's method, has p < `BEYOND_NOISE`. A case that
    could run and cannot any more is worse, too.

    Args:
        file: of `save`.
        device: where the models run.
        watch: see `Evaluation.carry_out`.

    Raises:
        VLMCompressError: the file cannot be read, or is of other weights or versions of tasks.
    """
    found = []
    for content in _read(file).values():
        try:
            before = _scores(content["tasks"])
            found.append(judge(before, _now(content, device, watch)))
        except VLMCompressError as error:
            raise VLMCompressError(f"{str(file)!r}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise VLMCompressError(f"{str(file)!r} is no file of baselines: {error!r}") from error
    return Verdict([line for one in found for line in one.lines], all(one.passed for one in found))


def _now(content: Mapping[str, Any], device: str | None, watch: Watch) -> dict[Key, Scores]:
    """Scores of a run like the one that `baselines_of` kept."""
    made = {key: content["provenance"][key] for key in _PLANNED}
    described = {task["name"]: task for task in content["descriptions"]}
    limits = {name: task["limit"] for name, task in described.items() if task["limit"] is not None}
    plan = Plan(
        methods=content["methods"],
        budgets=content["budgets"],
        tasks=list(content["tasks"]),
        device=device,
        limit=limits,
        **made,
    )
    evaluation = Evaluation(plan)
    for task in evaluation.tasks:
        if {**task.describe(), "limit": plan.limit_of(task.name)} != described[task.name]:
            raise VLMCompressError(f"it is of another version of task {task.name}")
    with tempfile.TemporaryDirectory() as folder:
        evaluation.carry_out(Path(folder), False, watch)
        run = read_run(Path(folder))
    if run.provenance["weights_sha256"] != content["provenance"]["weights_sha256"]:
        raise VLMCompressError(f"it is of other weights of {plan.model}")
    return _scores(baselines_of(summarise(run, evaluation.tasks))["tasks"])


def judge(before: Mapping[Key, Scores], now: Mapping[Key, Scores]) -> Verdict:
    """Compare scores of the same questions, case by case.

    Raises:
        VLMCompressError: a case has another number of questions than it had.
    """
    both = [key for key in before if key in now]
    for key in both:
        if len(before[key]) != len(now[key]):
            raise VLMCompressError(
                f"{_name(key)}: {len(now[key])} questions were scored, {len(before[key])} before"
            )
    p_values = statistics.holm(
        [statistics.paired_test(now[key], before[key], alternative="less") for key in both]
    )
    lines, passed = [], True
    for key, p in zip(both, p_values, strict=True):
        was, is_now = 100 * before[key].mean(), 100 * now[key].mean()
        worse = p < BEYOND_NOISE
        state = "WORSE" if worse else "ok"
        lines.append(f"{state:5}  {_name(key)}: {was:.1f} -> {is_now:.1f} %, p {p:.3g}")
        passed &= not worse
    gone = [key for key in before if key not in now]
    lines += [f"WORSE  {_name(key)}: it cannot run any more" for key in gone]
    return Verdict(lines, passed and not gone)


def _name(key: Key) -> str:
    return f"{key[0]}, {key[1]}"


def _read(file: Path) -> dict[str, Any]:
    """Name of a model -> its baselines."""
    try:
        content = read_json(file)
    except OSError as error:
        raise VLMCompressError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except VLMCompressError as error:
        raise VLMCompressError(f"{str(file)!r} {said(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise VLMCompressError(
            f"{str(file)!r} is no file of baselines: vlmcompress eval --save-baselines writes one"
        )
    models: dict[str, Any] = content.get("models", {})
    if not isinstance(models, dict):
        raise VLMCompressError(f"{str(file)!r} is no file of baselines: its models are no object")
    return models


def _scores(tasks: Mapping[str, Any]) -> dict[Key, Scores]:
    return {
        (task, Case(case["method"], case["budget"])): np.array(
            [float(one) for one in case["scores"]]
        )
        for task, cases in tasks.items()
        for case in cases
    }
