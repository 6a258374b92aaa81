"""Writes the table of README.md from the committed results.

python -m dev.pages.readme            # rewrite it
python -m dev.pages.readme --check    # exit 1 if that would change anything
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dev.pages import committed_results as committed
from dev.pages.generated import ROOT, keep_up, updated
from dev.pages.papers_agreement import MODEL, TASK, headline
from dev.pages.results import SPEED
from dev.pages.tuning import headline as tuned
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.results.scores import RANDOM_NAME
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY

README = ROOT / "README.md"
BENCHMARKS = SPEED.parent
METHODS = ("divprune", "scope", "divprune+fastv")
BUDGETS = ("50%", "25%", "12.5%")
_SHAPE, _METHOD, _COUNT = "qwen2-0.5b-llava", "divprune", 64
"""What the sentence about a real shape is about."""
_TOWER, _INSIDE = "gemma3-4b", "unit-drop+divprune"
"""What the one about a large vision tower is about."""
_AT_ONCE = 8
"""Requests that the one about a server is about."""


def figures() -> str:
    """Right answers and time of a few methods by budget, and what that means at a real size."""
    content = committed.results("tiny-llava")
    task, source = content["tasks"]["pictures"], content["provenance"]
    rows = {(row["method"], row["budget"]): row for row in task["cases"] if "cannot" not in row}
    full = rows[FULL, None]
    table = as_table(
        ["method", *(f"{budget} of the tokens" for budget in BUDGETS)],
        [
            *(
                [f"`{name}`", *(_cell(rows[name, budget]) for budget in BUDGETS)]
                for name in METHODS
            ),
            [f"`{RANDOM_NAME}`", *(_right(rows[RANDOM_NAME, budget]) for budget in BUDGETS)],
        ],
    )
    torch = source["versions"]["torch"]
    beside = headline(committed.results(MODEL)["tasks"][TASK])
    more = [f"- {line}" for line in (beside, tuned(), real_shape(), large_tower(), under_load())]
    return (
        f"{table}\n\nRight answers to {task['scored']} held-out questions about drawn scenes, and "
        f"time of an answer. All {task['tokens']:g} tokens: {_cell(full)}; none: "
        f"{_right(rows[TEXT_ONLY, None])}. `{source['model']}`, {source['dtype']}, batches of "
        f"{source['batch']}, {source['device']}, {source['threads']} thread, on a machine with "
        f"other work to do, torch {torch}; "
        f"`{RANDOM_NAME}` is the mean of three seeds.\n\n" + "\n".join(more)
    )


def _cell(row: Mapping[str, Any]) -> str:
    return f"{_right(row)}, {1000 * row['seconds']['median']:.0f} ms"


def _right(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} %"


def real_shape() -> str:
    """Time to the first token at the size of a real model, on the machine that was measured."""
    measured = json.loads(SPEED.read_text())
    case = next(name for name in measured["cases"] if name.split(",")[0] == _SHAPE)
    tower = case.split(", ")[1]  # how much of the vision tower was measured
    made_on = measured["cases"][case]
    rows = {
        (row["method"], row["budget"]): row
        for row in measured["rows"]
        if row["case"] == case and "skipped" not in row
    }
    full, kept = rows[FULL, None], rows[_METHOD, str(_COUNT)]
    return (
        f"At a real size (Qwen2-0.5B, {tower}, {full['tokens'][0]} visual tokens, random weights, "
        f"{made_on['cpu']}, {made_on['threads']} threads, {made_on['dtype']}) `{_METHOD}` with "
        f"{_COUNT} tokens needs {kept['ttft_ms'][0]:.0f} ms to the first token, the whole model "
        f"{full['ttft_ms'][0]:.0f} ms."
    )


def large_tower() -> str:
    """What a method inside the vision tower saves where one behind it saves little."""
    measured = json.loads((BENCHMARKS / "encoder_stage.json").read_text())
    row = next(one for one in measured["predicted"] if one["model"] == _TOWER)
    fewer, share = row["times_fewer"], measured["provenance"]["share"]
    return (
        f"Where the vision tower costs most, drop inside it: with {share} of the tokens kept, "
        f"`{_TOWER}` needs {fewer[_METHOD]:.1f} times fewer FLOPs to the first token with "
        f"`{_METHOD}`, {fewer[_INSIDE]:.1f} times with `{_INSIDE}` ([predicted](docs/speed.md))."
    )


def under_load() -> str:
    """What a server that many ask at once gains."""
    measured = json.loads((BENCHMARKS / "serving.json").read_text())
    row = next(one for one in measured["rows"] if one["concurrency"] == _AT_ONCE)
    kept = measured["settings"]["fewer"]
    return (
        f"Served by vLLM to {_AT_ONCE} at once, {kept['budget']} of "
        f"{measured['shape']['image_tokens']} tokens (`{kept['method']}`, random weights) let it "
        f"answer {row['throughput_ratio']:.1f} times as many requests a second "
        "([load](docs/serving.md))."
    )


def coverage() -> str:
    """A badge: how many of the model types of the transformers that is installed are tested."""
    from vlmcompress import list_models

    infos = list_models()
    tested = sum(info.state == "tested" for info in infos)
    words = f"{tested} of {len(infos)} tested"
    address = f"https://img.shields.io/badge/model_types-{words.replace(' ', '_')}-blue"
    return f"[![Model types: {words}]({address})](docs/models.md)"


PARTS = {"coverage": coverage, "figures": figures}


def page() -> str:
    """The whole README."""
    return updated(README.read_text(), PARTS)


def main() -> None:
    """Rewrite README.md, or only say whether that is needed."""
    keep_up(lambda: {README: page()}, "readme")


if __name__ == "__main__":
    main()
