"""Accuracy of a built-in model on held-out questions, method by method and budget by budget.

python -m vlmcompress.eval.accuracy_table --limit 560 --out eval/accuracy.json
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

import vlmcompress
from vlmcompress.errors import BudgetError
from vlmcompress.eval.worlds import HELD_OUT_SEEDS, KINDS, VERSION, Question, draw, held_out
from vlmcompress.loading import resolve

BUDGETS = (72, 36, 18, 9)
METHODS = ("random", "stride", "pool", "divprune", "fastv", "pyramiddrop", "divprune+fastv")
RANDOM_SEEDS = (0, 1, 2)
_ANSWER_TOKENS = 6


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    method: str
    budget: int | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Answers of one case, and the mean number of visual tokens that was really kept."""

    answers: list[str]
    kept: float
    seconds: float


def cases() -> Iterator[Case]:
    """All lines of the table; `full` is first, the others are compared with it."""
    yield Case("full", None, {})
    yield Case("text-only", None, {})
    for budget in BUDGETS:
        for method in METHODS:
            seeds: Sequence[dict[str, Any]] = [{}]
            if method == "random":
                seeds = [{"seed": seed} for seed in RANDOM_SEEDS]
            for options in seeds:
                yield Case(method, budget, options)


def answer_all(
    model: Any, processor: Any, asked: list[tuple[Image.Image, Question]], case: Case, batch: int
) -> Outcome:
    """Answer every question greedily under `case`."""
    answers: list[str] = []
    kept: list[float] = []
    started = time.perf_counter()
    with vlmcompress.compress(model, case.method, budget=case.budget, **case.options) as handle:
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            prompts = [chat_prompt(processor, question.text) for _, question in part]
            inputs = processor(
                text=prompts,
                images=[picture for picture, _ in part],
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
            fresh = out[:, inputs["input_ids"].shape[1] :]
            answers += [
                text.strip() for text in processor.batch_decode(fresh, skip_special_tokens=True)
            ]
            kept += [image.mean for image in handle.report().images]
    mean = sum(kept) / len(kept) if kept else 0.0
    return Outcome(answers, mean, time.perf_counter() - started)


def chat_prompt(processor: Any, question: str) -> str:
    """One picture and one question in the model's own chat format."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    message = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


def summarise(
    case: Case, outcome: Outcome, questions: list[Question], reference: list[bool]
) -> dict[str, Any]:
    """One row: overall, by kind, by wording, and question by question against `reference`.

    Args:
        case: What was run.
        outcome: Its answers.
        questions: What was asked.
        reference: Which questions `full` answered right; empty for `full` itself.
    """
    right = is_right(outcome.answers, questions)

    def share(wanted: list[bool]) -> float:
        chosen = [hit for hit, want in zip(right, wanted, strict=True) if want]
        return round(sum(chosen) / len(chosen), 4)

    row: dict[str, Any] = {
        "method": case.method,
        "budget": case.budget,
        "options": case.options,
        "kept_mean": round(outcome.kept, 3),
        "n": len(right),
        "accuracy": round(sum(right) / len(right), 4),
        "by_kind": {kind: share([q.kind == kind for q in questions]) for kind in KINDS},
        "by_wording": {str(w): share([q.wording == w for q in questions]) for w in (0, 1)},
        "seconds": round(outcome.seconds, 2),
    }
    if reference:
        pairs = list(zip(reference, right, strict=True))
        row["against_full"] = {
            "lost": pairs.count((True, False)),
            "won": pairs.count((False, True)),
        }
    return row


def is_right(answers: list[str], questions: list[Question]) -> list[bool]:
    """Exact match of every answer."""
    return [given == question.answer for given, question in zip(answers, questions, strict=True)]


def commonest_answer(questions: list[Question]) -> float:
    """Share of right answers of one who always gives the commonest answer of the kind."""
    right = 0
    for kind in KINDS:
        right += max(Counter(q.answer for q in questions if q.kind == kind).values(), default=0)
    return round(right / len(questions), 4)


def provenance(model_name: str, last_seed: int) -> dict[str, Any]:
    """What one needs to know to make the table again."""
    weights = Path(resolve(model_name)) / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "command": "python -m vlmcompress.eval.accuracy_table " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit,
        "model": model_name,
        "weights_sha256": digest,
        "worlds_version": VERSION,
        "seeds": [HELD_OUT_SEEDS.start, last_seed],
        "dtype": "float32",
        "versions": {
            "vlmcompress": vlmcompress.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
    }


def make_table(model_name: str, limit: int, batch: int) -> dict[str, Any]:
    """Run all cases."""
    model, processor = vlmcompress.load(model_name, device="cpu", dtype="float32")
    drawn = list(held_out(limit))
    asked = [(draw(scene), question) for scene, question in drawn]
    questions = [question for _, question in asked]
    rows: list[dict[str, Any]] = []
    reference: list[bool] = []
    for case in cases():
        try:
            outcome = answer_all(model, processor, asked, case, batch)
        except BudgetError as error:
            row = {"method": case.method, "budget": case.budget, "options": case.options}
            rows.append(row | {"unreachable": str(error)})
        else:
            rows.append(summarise(case, outcome, questions, reference))
            reference = reference or is_right(outcome.answers, questions)
        print(_line(rows[-1]), flush=True)
    return {
        "provenance": provenance(model_name, drawn[-1][0].seed),
        "commonest_answer": commonest_answer(questions),
        "rows": rows,
    }


def _line(row: dict[str, Any]) -> str:
    name = f"{row['method']:12} {row['budget'] or '':>4} "
    if "unreachable" in row:
        return name + f"unreachable: {row['unreachable']}"
    kinds = " ".join(f"{kind} {value:.2f}" for kind, value in row["by_kind"].items())
    return name + f"kept {row['kept_mean']:6.2f}  accuracy {row['accuracy']:.3f}  {kinds}"


def main() -> None:
    """Read the command line, run, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmcompress.eval.accuracy_table", description=__doc__
    )
    parser.add_argument("--model", default="tiny-llava", help="built-in name or model folder")
    parser.add_argument("--limit", type=int, default=560, help="held-out questions")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    table = make_table(arguments.model, arguments.limit, arguments.batch)
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
