"""The part of docs/speed.md about dropping inside the vision tower: savings, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dev.pages import committed_results as committed
from dev.pages.provenance import others
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.report.text import methods_at
from vlmcompress.eval.results import statistics
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.unit_drop import UnitDrop

_HEAD = """## Inside the vision tower

`unit-drop` drops tokens before a layer of the tower, by default after a quarter of them. What acts
behind the encoder cannot be faster than *no token*: the tower is what remains.

"""
_FLOPS = """Times fewer FLOPs up to the first token, whole models, {words} words, {share} of the
tokens kept in the end. Predicted; counted by torch on tiny models, they are equal.

"""
_TIMES = """Time of a feature call (tower and projector) beside the bare model's, with {layers}
layers of the tower, float32, taking turns; {rounds} rounds, smallest and largest ratio in brackets.
*Predicted* is the same of FLOPs. {share} of the tokens kept. {load:.0f} processes waited for
the machine's processors meanwhile: the more there are, the rougher are these ratios.

"""
_MERGERS = """{names} merge in the layers of the tower. What finding the pairs costs is in the
time, and not in *predicted*.

"""
_STAGES = """### Do the stages cost accuracy, or the shorter tower?

The same choice is made before the same layer. *Shorter* goes on without what was dropped, *whole*
lets the tower go on with everything and drops behind it, so that the two differ in the shorter
tower alone. `divprune` selects once, to the same final count. Right answers in % to the same
questions of drawn worlds ({questions}). The last columns count the questions that only the one and
only the other answered right, with p of the exact paired test, not corrected.

"""
_DIVPRUNE = "divprune"
Row = Mapping[str, Any]


def towers(results: Path) -> str:
    """Savings per model: FLOPs, and times of cut towers."""
    measured = json.loads((results / "encoder_stage.json").read_text())
    source = measured["provenance"]
    specs = list(measured["predicted"][0]["times_fewer"])
    flops = as_table(
        ["model", "tokens", "encoder", "no token", *(f"`{spec}`" for spec in specs)],
        (
            [
                row["model"],
                str(row["tokens"]),
                f"{100 * row['encoder']:.0f} %",
                f"{row['no_tokens']:.2f}x",
                *(f"{row['times_fewer'][spec]:.2f}x" for spec in specs),
            ]
            for row in measured["predicted"]
        ),
    )
    times = as_table(
        ["model", "tokens", "method", "bare, ms", "ms", "share", "predicted"],
        (
            [
                row["model"],
                str(row["tokens"]),
                f"`{row['method']}`",
                f"{row['bare_ms']:.0f}",
                f"{row['ms']:.0f}",
                "{:.2f} ({:.2f} to {:.2f})".format(*row["share"]),
                f"{row['predicted']:.2f}",
            ]
            for row in measured["timed"]
        ),
    )
    made_on = _made_on(source) + others(source, measured["timed"], _made_on)
    saved, took = _FLOPS.format(**source), _TIMES.format(**source)
    merging = dict.fromkeys(
        f"`{row['method']}`"
        for row in measured["timed"]
        if not isinstance(parse(row["method"]).upstream, UnitDrop)
    )
    if merging:
        took += _MERGERS.format(names=", ".join(merging))
    return f"{_HEAD}{saved}{flops}\n\n{took}{made_on}\n\n{times}\n"


def _made_on(made: Row) -> str:
    return f"{made['device']}, {made['threads']} threads, {made['date']}."


def stages() -> str:
    """Two stages with a shorter tower, two with a whole one, and one."""
    rows, asked = [], []
    for model, content in committed.all_results(committed.INSIDE).items():
        for name, task in content["tasks"].items():
            asked.append(f"{task['scored']} of {name} for {model}")
            for one in task["budgets"]:
                rows += _compared(f"{model}, {name}", task, one["budget"])
    table = as_table(
        [
            "model",
            "kept",
            "method",
            "divprune",
            "whole",
            "shorter",
            "whole : divprune",
            "shorter : divprune",
            "shorter : whole",
        ],
        rows,
    )
    return f"{_STAGES.format(questions=', '.join(asked))}{table}\n"


def _compared(where: str, task: Row, budget: str) -> list[list[str]]:
    """A row for each pipeline that was measured with a shorter and with a whole tower."""
    scores = {row["method"]: committed.scores_of(row) for row in methods_at(task, budget)}
    once, found = scores[_DIVPRUNE], []
    for spec in scores:
        whole = next((other for other in scores if _only_whole(other, spec)), None)
        if whole is not None:
            pairs = [(scores[whole], once), (scores[spec], once), (scores[spec], scores[whole])]
            accuracies = (once, scores[whole], scores[spec])
            found.append(
                [where, budget, f"`{spec}`"]
                + [f"{100 * one.mean():.1f}" for one in accuracies]
                + [_paired(*pair) for pair in pairs]
            )
    return found


def _only_whole(whole: str, shorter: str) -> bool:
    """Whether two specs differ in the tower alone."""
    drops = parse(shorter).upstream
    if not isinstance(drops, UnitDrop) or drops.whole_tower:
        return False
    return parse(whole) == parse(shorter, whole_tower=True)


def _paired(one: np.ndarray, other: np.ndarray) -> str:
    better, worse = int((one > other).sum()), int((one < other).sum())
    return f"{better} : {worse}, p = {statistics.paired_test(one, other):.2g}"
