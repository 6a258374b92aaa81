"""Contents of a results.json of which every answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from made_up_run import TOKENS, MadeUp, line, write

from vlmcompress.eval.results.summary import summarise
from vlmcompress.eval.run.cases import FULL, RANDOM, TEXT_ONLY, Case

BASELINES = {**dict.fromkeys(RANDOM, 30), "stride": 25, "downsample": 35}
"""Wrong answers of each."""


def make_task(
    folder: Path,
    wrong: Mapping[str, int | Mapping[str, int]],
    task: MadeUp | None = None,
    seconds: Mapping[str, float] | None = None,
    kept: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One task of a results.json in which the whole model is always right.

    Args:
        folder: for the files of the run.
        wrong: method -> how many of the first questions it gets wrong at 25 %, or of which budget
            how many; the baselines get `BASELINES` wrong where nothing else is said.
        task: what is asked; 70 questions of seven kinds in turn by default.
        seconds: an answer takes; 1 where nothing is said.
        kept: visual tokens, where a method does not keep to the budget.
    """
    task = task or MadeUp(size=70)
    asked = task.samples(None, 0)
    misses = {Case(FULL, None): 0, Case(TEXT_ONLY, None): 65}
    for method, told in {**BASELINES, **wrong}.items():
        counts = {"25%": told} if isinstance(told, int) else told
        misses |= {Case(method, budget): count for budget, count in counts.items()}
    lines, times = {}, {}
    for case, count in misses.items():
        share = 1.0 if case.budget is None else float(case.budget.rstrip("%")) / 100
        tokens = (kept or {}).get(case.method, share * TOKENS)
        lines[case] = [line(case, one, place >= count, tokens) for place, one in enumerate(asked)]
        times[case] = (seconds or {}).get(case.method, 1.0)
    run = write(folder, task, lines, times)
    made: dict[str, Any] = summarise(run, [task])["tasks"][task.name]
    return made


def content(model: str, **tasks: dict[str, Any]) -> dict[str, Any]:
    """A results.json.

    Args:
        model: its name.
        tasks: of `make_task`, by name.
    """
    source = {"command": "make it", "model": model, "dtype": "float32", "device": "CPU made up"}
    versions = {"torch": "2", "transformers": "5"}
    return {"provenance": {**source, "date": "today", "versions": versions}, "tasks": tasks}
