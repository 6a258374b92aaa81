"""Writes the parts of README.md that repeat what the code knows.

    python -m vlmcompress.eval.readme            # rewrite them
    python -m vlmcompress.eval.readme --check    # exit 1 if that would change anything

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ACCURACY = Path(__file__).resolve().parent / "accuracy.json"
CLIPS = Path(__file__).resolve().parent / "accuracy_qwen.json"
SPEED = Path(__file__).resolve().parent / "real_speed.json"
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
        ),
    )


def models() -> str:
    """One row for each supported family, and the built-in models."""
    from vlmcompress import list_models
    from vlmcompress.loading import BUILT_IN

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
        ),
    )
    names = ", ".join(f"`{name}`" for name in BUILT_IN)
    return f"{table}\n\nBuilt in, for trying things out without a download: {names}."


def accuracy(path: Path = ACCURACY) -> str:
    """Accuracy by method and budget, from the file that `eval/accuracy_table.py` writes.

    The seeds of one method are averaged; a budget that a method cannot meet is a dash.
    """
    measured = json.loads(path.read_text())
    rows, source = measured["rows"], measured["provenance"]
    table = _by_budget(rows)
    asked = max(row.get("n", 0) for row in rows)
    versions = ", ".join(f"{name} {source['versions'][name]}" for name in ("torch", "transformers"))
    return (
        f"{table}\n\nRight answers in % of {asked} held-out questions about drawn scenes; "
        f"`{source['model']}` (144 visual tokens), {source['dtype']}, CPU, {versions}. `full` "
        "keeps all tokens and `text-only` none, whatever the budget. A dash is a budget that the "
        "method cannot meet with its default layers. `stride` at 9 tokens is flattered: its 3x3 "
        "tokens fall on the centres of the 3x3 places where objects stand. The model never saw a "
        "prompt without a picture, so `text-only` is below the "
        f"{_percent([measured['commonest_answer']])} % of always giving the commonest answer of a "
        f"kind. Reproduce with `{source['command']}`."
    )


def clips(path: Path = CLIPS) -> str:
    """The same for questions about clips."""
    measured = json.loads(path.read_text())
    part, source = measured["clips"], measured["provenance"]
    asked = max(row.get("n", 0) for row in part["rows"])
    pictures = next(row for row in measured["rows"] if row["method"] == "full")
    return (
        f"{_by_budget(part['rows'])}\n\nRight answers in % of {asked} held-out questions about "
        f"motion, order and counting in drawn clips of 8 frames; `{source['model']}` "
        f"({part['tokens']} visual tokens a clip), {source['dtype']}, CPU. `one frame` sees all "
        "tokens of a clip that repeats its middle frame. About pictures the model is right in "
        f"{_percent([pictures['accuracy']])} % of {pictures['n']} questions with all its tokens; "
        f"the figures by budget and kind stand in `eval/{path.name}`. Reproduce with "
        f"`{source['command']}`."
    )


def _by_budget(rows: Sequence[Mapping[str, Any]]) -> str:
    """Methods by budgets; the seeds of one method are averaged, a dash is what it cannot meet."""
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None}, reverse=True)
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        # Without a budget: `full` and `text-only`, which keep the same whatever is asked.
        for budget in budgets if row["budget"] is None else [row["budget"]]:
            found = cells.setdefault(row["method"], {}).setdefault(budget, [])
            found += [row["accuracy"]] if "accuracy" in row else []
    return as_table(
        ["method", *(f"{budget} tokens" for budget in budgets)],
        (
            [f"`{name}`", *(_percent(line.get(budget, [])) for budget in budgets)]
            for name, line in cells.items()
        ),
    )


def speed(path: Path = SPEED) -> str:
    """Time to the first token of some methods, from the file that `eval/real_speed.py` writes."""
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


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paper_link(paper: str) -> str:
    number = re.fullmatch(r"arXiv (\d+\.\d+)", paper)
    return f"[{paper}](https://arxiv.org/abs/{number[1]})" if number else paper


def _percent(values: list[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"


def main() -> None:
    """Rewrite README.md, or only say whether that is needed."""
    parser = argparse.ArgumentParser(prog="python -m vlmcompress.eval.readme")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if needed")
    check = parser.parse_args().check
    before = README.read_text()
    after = updated(before)
    if check and after != before:
        sys.exit("README.md is out of date: run `make readme`")
    if not check:
        README.write_text(after)


if __name__ == "__main__":
    main()
