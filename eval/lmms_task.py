"""Our own tasks for lmms-eval, as files that need no network.

python -m vlmcompress.eval.lmms_task --tasks pictures,clips --limit 200 --out TASKS
lmms-eval --include_path TASKS --tasks vlmcompress_pictures ...
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.tasks.task import Media, Sample, Task
from vlmcompress.files import whole_file
from vlmcompress.media.video import Video

PREFIX = "vlmcompress_"
"""Before a task's name, so that it cannot be taken for one that lmms-eval ships."""

_HERE = "vlmcompress.eval.lmms_task"


def write_task(source: str, limit: int | None, seed: int, folder: Path) -> str:
    """Write the samples of a task as parquet, and the YAML with which lmms-eval reads them.

    Args:
        source: what `load_tasks` takes: a name or a path.
        limit: of samples; None for all.
        seed: of the samples.
        folder: where to; the files name their place, so that it cannot be moved.

    Returns:
        The task's name in lmms-eval.

    Raises:
        VLMCompressError: there is no such task, or it cannot be read or written.
    """
    with needs_eval():
        import pyarrow
        import pyarrow.parquet
        import yaml
    if Path(source).exists():
        source = str(Path(source).resolve())
    task = _task(source)
    name = PREFIX + task.name.replace("/", "_")
    data = folder.resolve() / f"{name}.parquet"
    rows = [_document(source, sample) for sample in task.samples(limit, seed)]
    if not rows:
        raise VLMCompressError(f"task {task.name!r} has no samples with limit {limit}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VLMCompressError(f"cannot write {str(folder)!r}: {error.strerror}") from error
    with whole_file(data) as draft:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), draft)
    text = yaml.safe_dump(_recipe(name, task, data), sort_keys=False)
    for function in ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results"):
        text += f"{function}: !function {_HERE}.{function}\n"
    with whole_file(folder / f"{name}.yaml") as draft:
        draft.write_text(text)
    return name


def doc_to_visual(document: Mapping[str, Any]) -> list[Any]:
    """The images as PIL images, clips as the dictionaries that lmms-eval takes for videos."""
    return [
        {"type": "video", "url": one} if isinstance(one, Video) else one
        for one in _read_media(document)
    ]


def doc_to_text(document: Mapping[str, Any], *_: Any, **__: Any) -> str:
    """The question as it is asked."""
    return str(document["question"])


def doc_to_target(document: Mapping[str, Any]) -> str:
    """The first of the right answers."""
    return str(document["answers"][0])


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The task's own score of an answer, under the name that `--baseline` compares."""
    sample = Sample(
        task=document["task"],
        index=document["index"],
        kind=document["kind"],
        wording=document["wording"],
        question=document["question"],
        answers=tuple(document["answers"]),
        load=lambda: _read_media(document),
        extra=json.loads(document["extra"]),
    )
    return {"score": _task(document["source"]).score(sample, results[0])}


@cache
def _task(source: str) -> Task:
    return load_tasks([source])[0]


def _recipe(name: str, task: Task, data: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_new_tokens": task.max_new_tokens, "do_sample": False},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": task.version},
    }


def _document(source: str, sample: Sample) -> dict[str, Any]:
    return {
        "source": source,
        "task": sample.task,
        "index": sample.index,
        "kind": sample.kind,
        "wording": sample.wording,
        "question": sample.question,
        "answers": list(sample.answers),
        "extra": json.dumps(sample.extra),
        "media": _pack(sample.load()),
    }


def _pack(media: Media) -> list[dict[str, Any]]:
    """Without loss: images as PNG, frames as .npy and the rest of a clip as JSON."""
    packed = []
    for one in media:
        file = io.BytesIO()
        about = None
        if isinstance(one, Video):
            np.save(file, one.frames)
            about = json.dumps({k: v for k, v in vars(one).items() if k != "frames"})
        else:
            one.save(file, format="PNG")
        packed.append({"about": about, "content": file.getvalue()})
    return packed


def _read_media(document: Mapping[str, Any]) -> Media:
    found: list[Image.Image | Video] = []
    for one in document["media"]:
        file = io.BytesIO(one["content"])
        if one["about"] is None:
            found.append(Image.open(file).convert("RGB"))
        else:
            found.append(Video(frames=np.load(file), **json.loads(one["about"])))
    return found


def main() -> None:
    """Read the command line and write the tasks."""
    parser = argparse.ArgumentParser(prog=f"python -m {_HERE}", description=__doc__)
    parser.add_argument("--tasks", default="pictures", help="names or files, commas between them")
    parser.add_argument("--limit", type=int, help="samples of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for --include_path")
    given = parser.parse_args()
    try:
        for source in given.tasks.split(","):
            print(write_task(source, given.limit, given.seed, given.out))
    except VLMCompressError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
