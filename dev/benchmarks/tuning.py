"""Does `vlmcompress tune` find the right method? Profiles of the built-in models, without labels.

python -m dev.benchmarks.tuning tiny-llava pictures --out build/tuning/tiny-llava-pictures.json

The questions are those of another seed than the committed answers in docs/eval, which
`dev.pages.tuning` compares the profiles with. Stopped, it goes on with --resume.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from vlmcompress.cli.progress_bar import Advance
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.models import loading
from vlmcompress.tuning.samples import TASK
from vlmcompress.tuning.tune import carry_out, plan_of

BUDGETS = ("50%", "25%", "12.5%", "6.25%")
SEED = 5
"""Of the worlds; the answers in docs/eval are of seed 0."""


def unlabelled(task: str, count: int) -> list[Sample]:
    """Questions of a task with their pictures or clips, and no answers."""
    (found,) = load_tasks([task])
    kind = "video" if found.medium == "video" else "image"
    return [
        replace(one, task=TASK, kind=kind, wording=0, answers=(), extra=f"{task} {SEED}")
        for one in found.samples(count, SEED)
    ]


def main() -> None:
    """Tune one model on one task."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.tuning", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("--out", type=Path, required=True, help="the profile, a JSON file")
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    (task,) = load_tasks([given.task])
    model, processor = loading.load(given.model, device="cpu", dtype="float32")
    carry_out(
        model,
        processor,
        unlabelled(given.task, given.samples),
        plan_of(
            given.budgets.split(","),
            batch=given.batch,
            longest=task.max_new_tokens,
            minutes=given.minutes,
        ),
        name=given.model,
        out=given.out,
        watch=Advance,
        resume=given.resume,
        seed=SEED,
        task=given.task,
    )


if __name__ == "__main__":
    main()
