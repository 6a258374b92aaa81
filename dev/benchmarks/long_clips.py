"""Peak memory and accuracy over the length of a clip, with and without chunks.

python -m dev.benchmarks.long_clips --out dev/benchmarks/results/long_clips.json

Every memory figure is that of a process of its own (`ru_maxrss`): it loads the model, reads a clip
of 64 KB of drawn frames and asks one question. Beside it stands what tensors `generate` held at
once, as `LiveMemory` counts them. Accuracies are of the tasks `clips` and `clips-N`.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from vlmcompress.api import compress
from vlmcompress.eval.results.statistics import proportion
from vlmcompress.eval.run.answering import answer
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY, Case
from vlmcompress.eval.run.provenance import machine
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.worlds.clips import FRAMES as CLIP_FRAMES
from vlmcompress.eval.worlds.long_clips import LENGTHS
from vlmcompress.files import write_json
from vlmcompress.models.loading import load
from vlmcompress.patches.encoder.live_memory import LiveMemory
from vlmcompress.prompts import generate, prepare

MODEL = "tiny-qwen"
METHOD, BUDGET = "divprune", "64"
"""Tokens of a clip, however long it is."""
MAX_MEMORY = "4MB"
FEWEST, FRAMES = 12, 16
"""Questions of a task at least, and frames up to which all are asked: longer clips get fewer."""
_TASKS = {"clips": CLIP_FRAMES, **{f"clips-{frames}": frames for frames in LENGTHS}}
"""Name of a task -> frames of its clips."""
CASES = (Case(FULL, None), Case(METHOD, BUDGET), Case(TEXT_ONLY, None))
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which `ru_maxrss` counts."""


def held(frames: int, max_memory: str | None) -> dict[str, Any]:
    """What this process held at most for one question about a clip of so many frames."""
    model, processor = load(MODEL, device="cpu")
    (sample,) = load_tasks([f"clips-{frames}"])[0].samples(1, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inputs = prepare(model, processor, [(sample.load(), sample.question)])
    read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with compress(model, METHOD, BUDGET, max_memory=max_memory, processor=processor) as handle:
        found = generate(model, processor, inputs, max_new_tokens=6)
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with LiveMemory() as memory:
            again = generate(model, processor, inputs, max_new_tokens=6)
        assert again.texts == found.texts
        (image,) = handle.report().images
    pixels = sum(value.nbytes for name, value in inputs.items() if name.startswith("pixel"))
    return {
        "frames": frames,
        "max_memory": max_memory,
        "loaded": before * _UNIT,
        "read": read * _UNIT,
        "process": process * _UNIT,
        "tensors": memory.peak,
        "pixels": pixels,
        "tokens": [image.before, image.after],
    }


def accuracy(model: Any, processor: Any, task_name: str, limit: int) -> list[dict[str, Any]]:
    """How many questions of a task are answered right, of each kind and case."""
    (task,) = load_tasks([task_name])
    scores: dict[tuple[str, Case], list[float]] = {}
    for sample in task.samples(limit, 0):
        inputs = prepare(model, processor, [(sample.load(), sample.question)])
        for case in CASES:
            found = answer(
                model, processor, inputs, case, MAX_MEMORY, max_new_tokens=task.max_new_tokens
            )
            scores.setdefault((sample.kind, case), []).append(task.score(sample, found.answers[0]))
    return [_row(task_name, _TASKS[task_name], *one) for one in scores.items()]


def _row(task: str, frames: int, key: tuple[str, Case], values: list[float]) -> dict[str, Any]:
    kind, case = key
    found = proportion(np.array(values))
    return {
        "task": task,
        "frames": frames,
        "kind": kind,
        "case": case.method,
        "budget": case.budget,
        "n": len(values),
        "accuracy": sum(values) / len(values),
        "interval": [found.low, found.high],
    }


def pieces(limit: int) -> dict[str, list[str]]:
    """What is measured in a process of its own: its name, and what this program is told.

    Args:
        limit: questions about short clips.
    """
    found = {
        f"memory of {frames} frames, {size or 'whole'}": [
            "--held",
            str(frames),
            *filter(None, [size]),
        ]
        for frames in LENGTHS
        for size in (None, MAX_MEMORY)
    }
    for task, frames in _TASKS.items():
        count = max(FEWEST, limit * FRAMES // max(FRAMES, frames))
        found[f"accuracy of {task}"] = ["--asked", task, str(count)]
    return found


def _measure(out: Path, limit: int) -> None:
    """Measure what the file lacks, and write it after each piece."""
    known = json.loads(out.read_text()) if out.exists() else {"memory": {}, "accuracy": {}}
    for name, given in pieces(limit).items():
        part = known[name.partition(" ")[0]]
        if name not in part:
            command = [sys.executable, "-m", "dev.benchmarks.long_clips", *given]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            part[name] = json.loads(done.stdout)
            made = {"model": MODEL, "method": METHOD, "budget": BUDGET, "limit": limit}
            made |= machine("python -m dev.benchmarks.long_clips", torch.device("cpu"))
            write_json(out, {**known, "made": made})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m dev.benchmarks.long_clips", description=__doc__
    )
    parser.add_argument("--out", type=Path, help="JSON file; what it holds is not measured again")
    parser.add_argument("--limit", type=int, default=24, help="questions about short clips")
    parser.add_argument("--held", nargs="+", metavar=("FRAMES", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--asked", nargs=2, metavar=("TASK", "N"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if given.held:
        frames, *size = given.held
        print(json.dumps(held(int(frames), size[0] if size else None)))
    elif given.asked:
        task, count = given.asked
        print(json.dumps(accuracy(*load(MODEL, device="cpu"), task, int(count))))
    elif given.out is None:
        parser.error("give a file: --out FILE")
    else:
        _measure(given.out, given.limit)


if __name__ == "__main__":
    main()
