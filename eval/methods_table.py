"""Accuracy of every registered method on held-out questions, for docs/methods.md.

python -m vlmcompress.eval.methods_table --model tiny-llava --out eval/methods_llava.json
python -m vlmcompress.eval.methods_table --model tiny-qwen --out eval/methods_qwen.json

Lines that the file already holds are not run again, so it can be stopped at any time.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vlmcompress
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.accuracy_table import (
    ONE_FRAME,
    RANDOM_SEEDS,
    SHARES,
    Asked,
    Case,
    answer_all,
    commonest_answer,
    filmed,
    is_right,
    summarise,
    visual_tokens,
)
from vlmcompress.eval.provenance import provenance
from vlmcompress.eval.worlds import draw, held_out
from vlmcompress.files import write_json
from vlmcompress.methods import COMPOSITIONS, METHODS

COMPOSED = (
    *COMPOSITIONS,
    "tome(stage='projector')",
    "pitome(stage='projector')",
    "mctf(stage='projector')",
    "cdpruner(negate=False)",
    "zoo-prune(probe='sketch')",
    "ppllava(repair='window')",
    "ppllava(repair='count')",
    "psigmoid(rows='last')",
    "divprune+fastv",
    "scope+adaptinfer",
    "pitome+divprune+adaptinfer",
)
"""Compositions and other settings that are measured beside the single methods."""
BARE = ("full", "text-only")
TABLES = {"embedlens": "table"}
"""Methods that know the built-in models by name, and the option that takes it."""


def cases(model: str, tokens: int, clips: bool) -> Iterator[Case]:
    """All lines of a table, `full` first, then the baselines, the others in registration order."""
    yield Case("full", None, {})
    if clips:
        yield Case(ONE_FRAME, None, {})
    yield Case("text-only", None, {})
    names = [name for name in METHODS.names() if name not in BARE]
    for name in [*names, *COMPOSED]:
        composed = name in COMPOSED
        budgets = [tokens // share for share in SHARES]
        if not composed and not METHODS.get(name).takes_budget:
            budgets = []
        options: list[dict[str, Any]] = [{TABLES[name]: model} if name in TABLES else {}]
        if name == "random":
            options = [{"seed": seed} for seed in RANDOM_SEEDS]
        alone = not composed and (METHODS.get(name).adaptive or not budgets)
        for budget in [*budgets, *([None] if alone else [])]:
            yield from (Case(name, budget, each) for each in options)


class Table:
    """The file and what it holds already."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        """Continue the file at `path` if it was made for the same model and questions."""
        self._path, self.content = path, head
        if path.exists():
            found = json.loads(path.read_text())
            same = ("model", "weights_sha256", "worlds_version", "questions")
            if all(found["provenance"].get(key) == head["provenance"][key] for key in same):
                self.content = found | {"provenance": head["provenance"]}

    def rows(self, part: str) -> list[dict[str, Any]]:
        """Lines of "pictures" or "clips"."""
        rows: list[dict[str, Any]] = self.content[part]["rows"]
        return rows

    def write(self) -> None:
        """Whole or not at all."""
        write_json(self._path, self.content)


def run(model: Any, processor: Any, asked: Asked, part: str, table: Table, batch: int) -> None:
    """All lines of one part that are still missing."""
    questions = [question for _, question in asked]
    tokens = visual_tokens(model, processor, asked)
    rows = table.rows(part)
    table.content[part] |= {"tokens": tokens, "commonest_answer": commonest_answer(questions)}
    done = [(row["method"], row["budget"], row["options"]) for row in rows]
    model_name = table.content["provenance"]["model"]
    for case in cases(model_name, tokens, part == "clips"):
        if (case.method, case.budget, case.options) in done:
            continue
        row: dict[str, Any] = {
            "method": case.method,
            "budget": case.budget,
            "options": case.options,
        }
        try:
            outcome = answer_all(model, processor, asked, case, batch)
        except VLMCompressError as error:
            row["impossible"] = str(error)
        else:
            hits = is_right(outcome.answers, questions)
            row = summarise(case, outcome, questions, [])
            row["hits"] = "".join("1" if hit else "0" for hit in hits)
        rows.append(row)
        table.write()
        shown = row.get("accuracy", row.get("impossible"))
        print(part, case.method, case.budget, shown, flush=True)


def main() -> None:
    """Read the command line and run what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmcompress.eval.methods_table", description=__doc__
    )
    parser.add_argument("--model", default="tiny-llava", help="built-in name or model folder")
    parser.add_argument("--limit", type=int, default=420, help="held-out questions")
    parser.add_argument("--clips", type=int, default=300, help="held-out questions about clips")
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write or continue")
    arguments = parser.parse_args()
    model, processor = vlmcompress.load(arguments.model, device="cpu", dtype="float32")
    drawn = list(held_out(arguments.limit))
    parts: dict[str, Asked] = {"pictures": [(draw(scene), question) for scene, question in drawn]}
    if hasattr(model.config, "video_token_id"):
        parts["clips"] = filmed(arguments.clips)[0]
    head: dict[str, Any] = {
        "provenance": provenance("methods_table", arguments.model, drawn[-1][0].seed)
    }
    head["provenance"]["questions"] = {part: len(asked) for part, asked in parts.items()}
    table = Table(arguments.out, head | {part: {"rows": []} for part in parts})
    for part, asked in parts.items():
        run(model, processor, asked, part, table, arguments.batch)
    table.write()


if __name__ == "__main__":
    main()
