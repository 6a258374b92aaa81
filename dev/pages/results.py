"""Writes the tables of docs/results.md: some methods by budget, accuracy and time.

python -m dev.pages.results            # rewrite them
python -m dev.pages.results --check    # exit 1 if that would change anything
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from dev.benchmarks.kept_rows import measured_on
from dev.pages import committed_results as committed
from dev.pages.auto_table import taken
from dev.pages.generated import ROOT, keep_up, updated
from dev.pages.provenance import others
from vlmcompress.defaults import AUTO
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.results.scores import RANDOM_NAME
from vlmcompress.eval.run.cases import FULL, ONE_FRAME, TEXT_ONLY

PAGE = ROOT / "docs" / "results.md"
SPEED = ROOT / "dev" / "benchmarks" / "results" / "published_shapes.json"
ACCURATE = (
    FULL,
    ONE_FRAME,
    TEXT_ONLY,
    RANDOM_NAME,
    "stride",
    "pool",
    "divprune",
    "fastv",
    "pyramiddrop",
    "divprune+fastv",
    AUTO,
)
"""Methods in the tables of right answers, where there are results of them."""
SHOWN = ("full", "text-only", "divprune", "pool", "fastv", "pyramiddrop")
"""Methods in the table of times."""


def accuracy() -> str:
    """Right answers about pictures by method and budget, from the committed results."""
    content = committed.results("tiny-llava")
    task = content["tasks"]["pictures"]
    return (
        f"{by_budget(task)}\n\nRight answers in % of {task['scored']} held-out questions about "
        f"drawn scenes; {_made_with(content, task)} `full` keeps all tokens and `text-only` none, "
        "which no prompt of the training did; `random` is the mean of three seeds. A dash is a "
        "budget that the method cannot meet with its default layers. `stride` at 9 tokens is "
        "flattered: its 3x3 tokens fall on the centers of the 3x3 places where objects stand. "
        f"{_closing(content, task)}"
    )


def clips() -> str:
    """Right answers about clips by method and budget, from the committed results."""
    content = committed.results("tiny-qwen")
    task, pictures = content["tasks"]["clips"], content["tasks"]["pictures"]
    return (
        f"{by_budget(task)}\n\nRight answers in % of {task['scored']} held-out questions about "
        f"motion, order and counting in drawn clips of 8 frames; {_made_with(content, task)} `one "
        "frame` sees all tokens of a clip that repeats its middle frame. About pictures the model "
        f"is right in {100 * pictures['full']['accuracy']:.1f} % of {pictures['scored']} questions "
        f"with all its tokens. {_closing(content, task)}"
    )


def by_budget(task: Mapping[str, Any]) -> str:
    """Some methods by budgets; what keeps the same under every budget stands in all columns.

    Args:
        task: part of a results.json.
    """
    picks = taken(task)
    lines = []
    for name in ACCURATE:
        specs = {budget: picks[budget] if name == AUTO else name for budget in picks}
        rows = [_found(task, spec, budget) for budget, spec in specs.items()]
        if any(row is not None for row in rows):
            lines.append([f"`{name}`", *("-" if r is None else _points(r) for r in rows)])
    targets = [f"{one['target']:g} tokens" for one in task["budgets"]]
    return as_table(["method", *targets], lines)


def _found(task: Mapping[str, Any], method: str, budget: str) -> Mapping[str, Any] | None:
    """The row of a method at a budget, or without one; None where it could not run."""
    rows = (row for row in task["cases"] if row["method"] == method and "cannot" not in row)
    return next((row for row in rows if row["budget"] in (budget, None)), None)


def _points(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f}"


def _made_with(content: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Model, machine and versions, and how wide the intervals are."""
    source = content["provenance"]
    versions = ", ".join(f"{name} {source['versions'][name]}" for name in ("torch", "transformers"))
    rows = [row for row in task["cases"] if row["method"] in ACCURATE and "interval" in row]
    half = median((row["interval"][1] - row["interval"][0]) / 2 for row in rows)
    return (
        f"`{source['model']}` ({task['tokens']:g} visual tokens), {source['dtype']}, "
        f"{source['device']}, {versions}. 95 % intervals reach about {100 * half:.1f} points "
        "either way."
    )


def _closing(content: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """What "auto" took, where to read on, and how to make it again."""
    source = content["provenance"]
    picks = ", ".join(dict.fromkeys(f"`{spec}`" for spec in taken(task).values()))
    return (
        f"`auto` takes {picks}, chosen by these and other questions, so its figures flatter it. "
        f"All methods: [report](eval/{source['model']}/report.md); which to take when: "
        f"[which.md](which.md). Reproduce with `make accuracy`."
    )


def speed(path: Path = SPEED) -> str:
    """Time to the first token of some methods, as `dev.benchmarks.published_shapes` wrote it."""
    measured = json.loads(path.read_text())
    rows = [row for row in measured["rows"] if row["method"] in SHOWN and "skipped" not in row]
    table = as_table(
        [
            "model",
            "method",
            "visual tokens",
            "first token, ms",
            "times as fast",
            "achieved",
            "possible",
        ],
        (
            [
                row["case"],
                f"`{row['method']}`",
                f"{row['tokens'][1]:.4g} of {row['tokens'][0]}",
                "{:.0f} ({:.0f} to {:.0f})".format(*row["ttft_ms"]),
                f"{1 / (1 - row['ttft_cut']):.2f}",
                *(f"{100 * row[share]:.0f} %" for share in ("achieved", "predicted")),
            ]
            for row in rows
        ),
    )
    cases: dict[str, dict[str, Any]] = measured["cases"]
    made_on = next(iter(cases.values()))
    each = [row | {"measured": measured_on(row, cases[row["case"]])} for row in rows]
    return (
        f"{table}\n\nReal shapes with random weights (time does not depend on them), batch 1, "
        f"{made_on['prompt']['text']} words; the vision towers are cut to fit a CPU. Medians and "
        f"quartiles of interleaved runs: {_on(made_on)}; encoder and selection included. *Times "
        "as fast* is beside the bare model of the same turns, some methods at a time, the line of "
        "`full` that of the first. *Achieved* is the share "
        "of the time that dropping every visual token would save, *possible* the same of FLOPs for "
        "as many tokens. All methods, what they cost themselves, and decode steps: "
        f"[speed.md](speed.md). Reproduce with `make figures`.{others(made_on, each, _on)}"
    )


def _on(made: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers"))
    return f"{made['cpu']}, {made['threads']} threads, {made['dtype']}, {versions}"


PARTS: dict[str, Callable[[], str]] = {"accuracy": accuracy, "clips": clips, "speed": speed}


def page() -> str:
    """The whole page."""
    return updated(PAGE.read_text(), PARTS)


def main() -> None:
    """Rewrite docs/results.md, or only say whether that is needed."""
    keep_up(lambda: {PAGE: page()}, "results")


if __name__ == "__main__":
    main()
