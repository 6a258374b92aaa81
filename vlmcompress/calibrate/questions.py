"""What a model is calibrated on: pictures and a question about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.tasks.from_worlds import WORLDS
from vlmcompress.eval.worlds.world import TRAIN_SEEDS
from vlmcompress.files.untrusted import check_file_name, parse_json, read_text, said
from vlmcompress.media.images import read_image
from vlmcompress.media.regular_files import check_file
from vlmcompress.prompts import prepare

_STREAM = 3  # tells the random numbers of these questions from others of the same seed


@dataclass(frozen=True)
class CalibrationQuestion:
    """A picture, or the file that it is in, and a question."""

    picture: Image | Path
    question: str


def training_questions(
    limit: int, seed: int = 0, world: str = "pictures"
) -> list[CalibrationQuestion]:
    """Questions about synthetic scenes of training seeds, never of held-out ones; kinds in turn.

    Args:
        limit: how many.
        seed: of the first scene; later scenes follow, from the start again after the last.
        world: one of pictures, by its name in `WORLDS`.
    """
    drawn = WORLDS[world]
    found: list[CalibrationQuestion] = []
    for number in range(limit * 20):
        if len(found) == limit:
            break
        own = TRAIN_SEEDS[(seed + number) % len(TRAIN_SEEDS)]
        scene = drawn.make(own)
        kind = drawn.kinds[len(found) % len(drawn.kinds)]
        question = drawn.ask(scene, kind, np.random.default_rng([own, _STREAM]))
        if question is not None:
            (picture,) = drawn.load(scene)
            assert isinstance(picture, Image)  # no world of clips
            found.append(CalibrationQuestion(picture, question.text))
    return found


def read_questions(path: str | Path, limit: int | None = None) -> list[CalibrationQuestion]:
    """The lines of a JSONL file: {"image": a file, "question": a text}; other keys may be there.

    Image files are looked for in the folder of the JSONL file.

    Args:
        path: the file; blank lines are skipped.
        limit: the first so many; None for all.

    Raises:
        VLMCompressError: the file cannot be read, a line is malformed, an image is not there, or
            there are no questions.
    """
    file = Path(path)
    check_file(file, "data file")
    try:
        lines = read_text(file).splitlines()
    except (OSError, VLMCompressError) as error:
        raise VLMCompressError(f"data file {str(file)!r} cannot be read: {error}") from error
    found = [
        _parse(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    ][:limit]
    if not found:
        raise VLMCompressError(f"data file {str(file)!r} has no questions")
    return found


def batches(
    model: Any, processor: Any, asked: Sequence[CalibrationQuestion], size: int
) -> Iterator[dict[str, Any]]:
    """Inputs of the model for `size` questions at a time, each in the model's chat format.

    Raises:
        VLMCompressError: an image is damaged, or the processor does not take a chat.
    """
    for start in range(0, len(asked), size):
        prompts = [([_picture(one)], one.question) for one in asked[start : start + size]]
        yield dict(prepare(model, processor, prompts))


def _picture(asked: CalibrationQuestion) -> Image:
    return asked.picture if isinstance(asked.picture, Image) else read_image(asked.picture)


def _parse(file: Path, number: int, line: str) -> CalibrationQuestion:
    where = f"data file {str(file)!r}, line {number}"
    try:
        entry = parse_json(line)
    except VLMCompressError as error:
        raise VLMCompressError(f"{where} {said(error)}") from error
    picture, question = (
        (entry.get("image"), entry.get("question")) if isinstance(entry, dict) else (None, None)
    )
    if not (isinstance(picture, str) and isinstance(question, str) and question.strip()):
        raise VLMCompressError(f'{where} must be like {{"image": "a.png", "question": "what ?"}}')
    check_file_name(picture)
    check_file(file.parent / picture)
    return CalibrationQuestion(file.parent / picture, question)
