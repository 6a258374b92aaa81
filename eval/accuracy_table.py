"""Accuracy of a built-in model on held-out questions, method by method and budget by budget.

python -m vlmcompress.eval.accuracy_table --limit 560 --out eval/accuracy.json

A model that takes clips is asked about them, too; then there is one more line, "one frame", for all
tokens of a clip that repeats its middle frame.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlmcompress
from vlmcompress.errors import BudgetError
from vlmcompress.eval.provenance import provenance
from vlmcompress.eval.worlds import HELD_OUT_SEEDS, Question, draw, held_out
from vlmcompress.eval.worlds_clip_questions import held_out_clips
from vlmcompress.eval.worlds_clips import (
    CLIP_VERSION,
    FRAMES,
    FRAMES_PER_SECOND,
    one_frame,
    render_clip,
)
from vlmcompress.files import write_json

SHARES = (2, 4, 8, 16)
"""Budgets: one token of so many is kept."""
METHODS = ("random", "stride", "pool", "divprune", "fastv", "pyramiddrop", "divprune+fastv")
RANDOM_SEEDS = (0, 1, 2)
ONE_FRAME = "one frame"
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


Asked = list[tuple[Any, Question]]
"""Pictures (PIL), or clips ([8, 96, 96, 3] arrays), and a question about each."""


def cases(tokens: int, clips: bool = False) -> Iterator[Case]:
    """All lines of a table; `full` is first, the others are compared with it.

    Args:
        tokens: Of a picture or a clip.
        clips: Whether it is about clips.
    """
    yield Case("full", None, {})
    if clips:
        yield Case(ONE_FRAME, None, {})
    yield Case("text-only", None, {})
    for budget in (tokens // share for share in SHARES):
        for method in METHODS:
            seeds: Sequence[dict[str, Any]] = [{}]
            if method == "random":
                seeds = [{"seed": seed} for seed in RANDOM_SEEDS]
            for options in seeds:
                yield Case(method, budget, options)


def answer_all(model: Any, processor: Any, asked: Asked, case: Case, batch: int) -> Outcome:
    """Answer every question greedily under `case`."""
    answers: list[str] = []
    kept: list[float] = []
    started = time.perf_counter()
    method = case.method
    if method == ONE_FRAME:
        method, asked = "full", [(one_frame(np.asarray(seen)), q) for seen, q in asked]
    with vlmcompress.compress(
        model, method, budget=case.budget, processor=processor, **case.options
    ) as handle:
        for start in range(0, len(asked), batch):
            inputs = prepare(processor, asked[start : start + batch])
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
            fresh = out[:, inputs["input_ids"].shape[1] :]
            answers += [
                text.strip() for text in processor.batch_decode(fresh, skip_special_tokens=True)
            ]
            kept += [image.mean for image in handle.report().images]
    mean = sum(kept) / len(kept) if kept else 0.0
    return Outcome(answers, mean, time.perf_counter() - started)


def prepare(processor: Any, asked: Asked) -> Any:
    """Inputs of the model for questions about pictures, or about clips."""
    clips = isinstance(asked[0][0], np.ndarray)
    texts = [chat_prompt(processor, q.text, "video" if clips else "image") for _, q in asked]
    shown = [seen for seen, _ in asked]
    if not clips:
        return processor(text=texts, images=shown, padding=True, return_tensors="pt")
    times = {"fps": float(FRAMES_PER_SECOND), "frames_indices": list(range(FRAMES))}
    metadata = [{"total_num_frames": FRAMES, **times} for _ in asked]
    return processor(
        text=texts,
        videos=shown,
        video_metadata=metadata,
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )


def chat_prompt(processor: Any, question: str, medium: str = "image") -> str:
    """One picture, or clip ("video"), and one question in the model's own chat format."""
    content = [{"type": medium}, {"type": "text", "text": question}]
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
        "by_kind": {
            kind: share([q.kind == kind for q in questions]) for kind in kinds_of(questions)
        },
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


def kinds_of(questions: list[Question]) -> list[str]:
    """The kinds that were asked, in the order in which they first appear."""
    return list(dict.fromkeys(question.kind for question in questions))


def is_right(answers: list[str], questions: list[Question]) -> list[bool]:
    """Exact match of every answer."""
    return [given == question.answer for given, question in zip(answers, questions, strict=True)]


def commonest_answer(questions: list[Question]) -> float:
    """Share of right answers of one who always gives the commonest answer of the kind."""
    right = 0
    for kind in kinds_of(questions):
        right += max(Counter(q.answer for q in questions if q.kind == kind).values())
    return round(right / len(questions), 4)


def make_table(model_name: str, limit: int, clips: int, batch: int) -> dict[str, Any]:
    """Run all cases."""
    model, processor = vlmcompress.load(model_name, device="cpu", dtype="float32")
    drawn = list(held_out(limit))
    asked: Asked = [(draw(scene), question) for scene, question in drawn]
    table = {"provenance": provenance("accuracy_table", model_name, drawn[-1][0].seed)}
    table |= run_cases(model, processor, asked, batch)
    if hasattr(model.config, "video_token_id"):
        asked, last = filmed(clips)
        seeds = {"clip_version": CLIP_VERSION, "seeds": [HELD_OUT_SEEDS.start, last]}
        table["clips"] = seeds | run_cases(model, processor, asked, batch)
    return table


def filmed(limit: int) -> tuple[Asked, int]:
    """Held-out questions about clips, and the last seed among them."""
    found = list(held_out_clips(limit))
    return [(render_clip(clip)[0], question) for clip, question in found], found[-1][0].seed


def visual_tokens(model: Any, processor: Any, asked: Asked) -> int:
    """Of the first picture or clip."""
    clips = isinstance(asked[0][0], np.ndarray)
    visual = model.config.video_token_id if clips else model.config.image_token_id
    return int((prepare(processor, asked[:1])["input_ids"] == visual).sum())


def run_cases(model: Any, processor: Any, asked: Asked, batch: int) -> dict[str, Any]:
    """All lines about some pictures, or some clips."""
    clips = isinstance(asked[0][0], np.ndarray)
    tokens = visual_tokens(model, processor, asked)
    questions = [question for _, question in asked]
    rows: list[dict[str, Any]] = []
    reference: list[bool] = []
    for case in cases(tokens, clips):
        try:
            outcome = answer_all(model, processor, asked, case, batch)
        except BudgetError as error:
            row = {"method": case.method, "budget": case.budget, "options": case.options}
            rows.append(row | {"unreachable": str(error)})
        else:
            rows.append(summarise(case, outcome, questions, reference))
            reference = reference or is_right(outcome.answers, questions)
        print(_line(rows[-1]), flush=True)
    return {"tokens": tokens, "commonest_answer": commonest_answer(questions), "rows": rows}


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
    parser.add_argument("--clips", type=int, default=180, help="held-out questions about clips")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    table = make_table(arguments.model, arguments.limit, arguments.clips, arguments.batch)
    write_json(arguments.out, table)


if __name__ == "__main__":
    main()
