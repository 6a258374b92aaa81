"""What a model is tuned on: a user's pictures and clips with questions, and no answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlmcompress.asking.questions import Question, in_folder, of_file, of_files
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.files.records import SUFFIXES, records

TASK = "tuning"
PICTURES = (
    "What is shown in this picture?",
    "Describe the picture in one sentence.",
    "What is the largest object, and what color is it?",
    "How many objects are there?",
    "What is written in the picture?",
    "What is in the background?",
    "Where in the picture is the smallest object?",
    "What stands out in this picture?",
)
CLIPS = (
    "What happens in this clip?",
    "Describe the clip in one sentence.",
    "What happens first?",
    "What happens last?",
    "What moves, and in which direction?",
    "How many objects appear?",
    "What is written in the clip?",
    "What changes over time?",
)
"""Asked where nobody gives questions: what is there, where, how many, and what is written."""


def read_samples(
    media: Path | None,
    questions: Path | None,
    limit: int,
    seed: int,
    frames: int | None = None,
    fps: float | None = None,
) -> list[Sample]:
    """Samples in an order that a seed stands for; pictures and clips are read when they are loaded.

    Args:
        media: a folder of pictures and clips; each is asked about before any is asked again.
        questions: a .jsonl or .csv file. Rows that name their own `image`, `images` or `video`
            (relative to `media`, or to the file's folder) are asked as they are; rows with a
            `question` alone are asked about the files of `media`. None for `PICTURES` and `CLIPS`.
        limit: how many, at most.
        seed: of the order.
        frames: sampled of each clip.
        fps: frames a second sampled instead.

    Raises:
        VLMCompressError: nothing to ask about, a damaged row, or rows of both kinds.
    """
    if media is not None and not media.is_dir():
        raise VLMCompressError(f"--media {str(media)!r} is no folder")
    if questions is not None and questions.suffix.lower() not in SUFFIXES:
        raise VLMCompressError(f"questions {str(questions)!r} must end in {' or '.join(SUFFIXES)}")
    rng = np.random.default_rng(seed)
    if questions is not None and _names_media(questions):
        found = list(of_file(questions, None, media))
        found = [found[place] for place in rng.permutation(len(found)).tolist()]
    elif media is not None:
        found = _about(media, questions, rng)
    else:
        raise VLMCompressError("there is nothing to ask about: give --media, a folder of pictures")
    if not found:
        raise VLMCompressError(f"there is no picture and no video in {str(media or questions)!r}")
    return [_sample(index, one, frames, fps) for index, one in enumerate(found[:limit])]


def in_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Batches of one medium, those of pictures and clips in turn.

    Each kind keeps its order, and what is in a batch does not depend on how far a race goes.
    """
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind, []).append(sample)
    parts = [
        ((start + 1) / len(group), group[start : start + size])
        for group in kinds.values()
        for start in range(0, len(group), size)
    ]
    return [batch for _, batch in sorted(parts, key=lambda part: part[0])]


def _about(media: Path, questions: Path | None, rng: np.random.Generator) -> list[Question]:
    """Every file with a question, then every file with another one, and so on."""
    files, _ = in_folder(media)
    files = [files[place] for place in rng.permutation(len(files)).tolist()]
    own = None if questions is None else list(_texts(questions))
    found: list[Question] = []
    most = max(len(PICTURES), len(CLIPS)) if own is None else len(own)
    for turn in range(most):
        for place, file in enumerate(files):
            (named,) = of_files([file], "?")
            texts = own or (CLIPS if named.has_video else PICTURES)
            if turn < len(texts):
                found.append(replace(named, text=texts[(place + turn) % len(texts)]))
    return found


def _names_media(path: Path) -> bool:
    """Whether the rows of a file say what they are about; all of them do, or none."""
    named = [
        any(row.get(name) for name in ("image", "images", "video")) for _, row in records(path)
    ]
    if not named:
        raise VLMCompressError(f"questions {str(path)!r} has no rows")
    if any(named) and not all(named):
        raise VLMCompressError(
            f"questions {str(path)!r}: {named.count(True)} of {len(named)} rows name a picture or "
            "clip: all must, or none"
        )
    return named[0]


def _texts(path: Path) -> Iterator[str]:
    for where, row in records(path):
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise VLMCompressError(f"{where}: field 'question' must be a text")
        yield text


def _sample(index: int, asked: Question, frames: int | None, fps: float | None) -> Sample:
    load: Any = partial(asked.read, frames, fps)
    kind = "video" if asked.has_video else "image"
    return Sample(TASK, index, kind, 0, asked.text, (), load, extra=asked.where)
