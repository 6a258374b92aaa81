"""Writes the parts of README.md that repeat what the code knows.

    python -m dev.pages.readme            # rewrite them
    python -m dev.pages.readme --check    # exit 1 if that would change anything

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from dev.pages import committed_results as committed
from dev.pages.auto_table import taken
from vlmcompress.defaults import AUTO
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.results.scores import RANDOM_NAME
from vlmcompress.eval.run.cases import FULL, ONE_FRAME, TEXT_ONLY

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
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


def methods() -> str:
    """One row for each registered method."""
    from vlmcompress import list_methods

    return as_table(
        ["method", "stage", "what it does", "paper"],
        (
            [
                f"`{info.name}`",
                ", ".join(sorted(info.stages)),
                info.summary,
                paper_link(info.paper),
            ]
            for info in list_methods()
            if info.package is None
        ),
    )


def models() -> str:
    """One row for each family with an adapter of its own, and how many other types there are."""
    from vlmcompress import list_models
    from vlmcompress.models.names import BUILT_IN
    from vlmcompress.patches.families.registry import FAMILIES
    from vlmcompress.patches.families.table import TESTED

    table = as_table(
        ["family", "classes", "stages", "images", "video", "signals"],
        (
            [
                f"`{info.name}`",
                ", ".join(f"`{name}`" for name in info.classes),
                ", ".join(info.stages),
                "yes" if info.images else "no",
                "yes" if info.video else "no",
                ", ".join(f"`{name}`" for name in info.signals),
            ]
            for info in list_models()
            if info.name in FAMILIES and FAMILIES.package_of(info.name) is None
        ),
    )
    names = ", ".join(f"`{name}`" for name in BUILT_IN)
    others = len(TESTED - set(FAMILIES.names()))
    return (
        f"{table}\n\n**{others} more types** are tested with one adapter that is derived from the "
        "model, among them Qwen3.5, Gemma 4, GLM-4.6V, Qwen3-Omni, MiniCPM-V, Molmo2 and "
        "PaliGemma: [docs/models.md](docs/models.md) tells for each of them where tokens can be "
        "dropped. Types that are not listed there are tried by their structure, with a warning, or "
        "refused with the reason; `vlmcompress check MODEL` proves them on your weights "
        "([what it asks](docs/check.md)).\n\n"
        f"Built in, for trying things out without a download: {names}."
    )


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
        f"All methods: [report](docs/eval/{source['model']}/report.md); which to take when: "
        f"[docs/which.md](docs/which.md). Reproduce with `make accuracy`."
    )


def speed(path: Path = SPEED) -> str:
    """Time to the first token of some methods, as `dev.benchmarks.published_shapes` wrote it."""
    measured = json.loads(path.read_text())
    full = {row["case"]: row["ttft_ms"][0] for row in measured["rows"] if row["method"] == "full"}
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
                f"{full[row['case']] / row['ttft_ms'][0]:.2f}",
                *(f"{100 * row[share]:.0f} %" for share in ("achieved", "predicted")),
            ]
            for row in measured["rows"]
            if row["method"] in SHOWN and "skipped" not in row
        ),
    )
    made_on = next(iter(measured["cases"].values()))
    versions = ", ".join(
        f"{name} {made_on['versions'][name]}" for name in ("torch", "transformers")
    )
    return (
        f"{table}\n\nReal shapes with random weights (time does not depend on them), batch 1, "
        f"{made_on['prompt']['text']} words; the vision towers are cut to fit a CPU. Medians and "
        f"quartiles of interleaved runs: {made_on['cpu']}, {made_on['threads']} threads, "
        f"{made_on['dtype']}, {versions}; encoder and selection included. *Achieved* is the share "
        "of the time that dropping every visual token would save, *possible* the same of FLOPs for "
        "as many tokens. All methods, what they cost themselves, and decode steps: "
        "[docs/speed.md](docs/speed.md). Reproduce with `make figures`."
    )


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "models": models,
    "accuracy": accuracy,
    "clips": clips,
    "speed": speed,
}


def updated(text: str) -> str:
    """`text` with every generated part made anew.

    Raises:
        ValueError: the marks of a part are missing.
    """
    for name, make in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} -->")
        start, end = found.span()
        text = f"{text[:start]}{found[1]}{make()}\n{found[2]}{text[end:]}"
    return text


def paper_link(paper: str) -> str:
    number = re.fullmatch(r"arXiv (\d+\.\d+)", paper)
    return f"[{paper}](https://arxiv.org/abs/{number[1]})" if number else paper


def keep_up(path: Path, make: Callable[[], str], program: str) -> None:
    """The command line of a generated file: rewrite it, or with --check only say whether to.

    Args:
        path: of the file.
        make: its whole content.
        program: name of the module.
    """
    parser = argparse.ArgumentParser(prog=f"python -m vlmcompress.eval.{program}")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if needed")
    check = parser.parse_args().check
    made = make()
    if not check:
        path.write_text(made)
    elif not path.exists() or path.read_text() != made:
        sys.exit(f"{path.name} is out of date: run `make readme`")


def main() -> None:
    """Rewrite README.md, or only say whether that is needed."""
    keep_up(README, lambda: updated(README.read_text()), "readme")


if __name__ == "__main__":
    main()
