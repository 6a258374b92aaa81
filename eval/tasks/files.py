"""Tasks from a user's own data: a file of rows, with or without settings in YAML."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.metrics.metrics import METRICS, Metric
from vlmcompress.eval.tasks.rows import DATA_SUFFIXES, FIELDS, Row, read_rows
from vlmcompress.eval.tasks.settings import Settings, check_limit, check_name
from vlmcompress.eval.tasks.task import Media, Sample
from vlmcompress.files.untrusted import short
from vlmcompress.media.video import read_video
from vlmcompress.registry import unknown

SHORT_PROMPTS = (
    "{question}\nAnswer the question using a single word or phrase.",
    "{question}",
)
CHOICE_PROMPTS = (
    "{question}\n{choices}\nAnswer with the option's letter from the given choices directly.",
    "{question}\n{choices}",
)
"""Wordings where none are given: with and without the sentences that LLaVA-1.5 was trained on."""
DEFAULT_TOKENS = 32
"""Length of an answer where none is given."""


@dataclass(frozen=True)
class FileTask:
    """Questions about a user's own images or videos.

    Attributes:
        scorer: what `metric` names, with its options.
        prompts: templates with {question} and perhaps {choices}; each is a wording, taken in turn.
        frames: of a video that are read, see `read_video`; None for its default.
        data: the file.
        sha256: of the data file; images and videos that it names are not part of it.
        rows: of the data file.
        others: see `vlmcompress.eval.tasks.task.Task`.
    """

    name: str
    version: int
    medium: str
    metric: str
    max_new_tokens: int
    scorer: Metric
    prompts: tuple[str, ...]
    frames: int | None
    data: Path
    sha256: str
    rows: Sequence[Row]

    def samples(self, limit: int | None, seed: int) -> Sequence[Sample]:
        """The first `limit` rows (None: all), as they stand with seed 0 and shuffled with others.

        Images and videos are read when a sample is loaded.

        Raises:
            VLMCompressError: a limit below 1 or a negative seed.
        """
        if seed < 0:
            raise VLMCompressError(f"seed {seed} is out of range: it must be 0 or more")
        count = len(self.rows) if limit is None else check_limit(limit)
        order: Sequence[int] = range(len(self.rows))
        if seed:
            order = np.random.default_rng(seed).permutation(len(self.rows)).tolist()
        return [self._sample(index, self.rows[place]) for index, place in enumerate(order[:count])]

    def _sample(self, index: int, row: Row) -> Sample:
        wording = index % len(self.prompts)
        return Sample(
            task=self.name,
            index=index,
            kind=row.kind,
            wording=wording,
            question=_fill(self.prompts[wording], row),
            answers=row.answers,
            load=partial(_load, row, self.frames),
            extra={"choices": row.choices, "id": row.id},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """How right an answer is, from 0 to 1."""
        return self.scorer.score(answer, sample.answers, sample.extra["choices"])

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "name": self.name,
            "version": self.version,
            "medium": self.medium,
            "metric": self.metric,
            "metric_options": asdict(self.scorer),
            "max_new_tokens": self.max_new_tokens,
            "prompts": list(self.prompts),
            "frames": self.frames,
            "data": str(self.data),
            "sha256": self.sha256,
            "rows": len(self.rows),
        }


def load_data(path: Path) -> FileTask:
    """The task of a .jsonl, .csv or .parquet file without settings.

    It is called as the file, and its metric is `choice` where rows have choices, else `exact`.

    Raises:
        VLMCompressError: see `read_rows`.
    """
    rows = read_rows(path)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)
    metric = "choice" if any(row.choices for row in rows) else "exact"
    return _task(name, path, rows, metric, METRICS.get(metric)())


def read_file_task(settings: Settings) -> FileTask:
    """The task that a YAML file with the key `data` describes.

    Raises:
        VLMCompressError: a key is missing, unknown or of the wrong type, or see `read_rows`.
    """
    name = check_name(settings.text("name"))
    version = settings.number("version", 1)
    data = settings.path.parent / settings.text("data")
    metric = settings.text("metric")
    try:
        kind = METRICS.get(metric)
        scorer = kind(**{f.name: settings.any(f.name, f.default) for f in fields(kind)})
    except VLMCompressError as error:
        raise settings.error(error) from error
    prompts = settings.texts("prompts") if settings.has("prompts") else None
    tokens = settings.number("max_new_tokens", DEFAULT_TOKENS)
    frames = settings.number("frames") if settings.has("frames") else None
    columns = settings.table("columns") if settings.has("columns") else {}
    settings.finish()
    for field in columns:
        if field not in FIELDS:
            raise settings.error(unknown("field", field, list(FIELDS)))
    for prompt in prompts or ():
        _check_prompt(settings, prompt)
    if data.suffix.lower() not in DATA_SUFFIXES:
        raise settings.error(f"data file {str(data)!r} must end in {' or '.join(DATA_SUFFIXES)}")
    rows = read_rows(data, columns)
    return _task(name, data, rows, metric, scorer, version, prompts, frames, tokens)


def _task(
    name: str,
    data: Path,
    rows: Sequence[Row],
    metric: str,
    scorer: Metric,
    version: int = 1,
    prompts: tuple[str, ...] | None = None,
    frames: int | None = None,
    tokens: int = DEFAULT_TOKENS,
) -> FileTask:
    """A task whose rows go together, and with the metric and the prompts."""
    if prompts is None:
        prompts = CHOICE_PROMPTS if any(row.choices for row in rows) else SHORT_PROMPTS
    for row in rows:
        try:
            scorer.check(row.answers, row.choices)
            if (row.video is None) != (rows[0].video is None):
                raise VLMCompressError("images and videos are mixed: make a file of each")
            if not row.choices and any("{choices}" in prompt for prompt in prompts):
                raise VLMCompressError("field 'choices' is missing, which the prompt has")
        except VLMCompressError as error:
            raise VLMCompressError(f"{row.where}: {error}") from error
    with data.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return FileTask(
        name=name,
        version=version,
        medium="image" if rows[0].video is None else "video",
        metric=metric,
        max_new_tokens=tokens,
        scorer=scorer,
        prompts=prompts,
        frames=frames,
        data=data,
        sha256=digest.hexdigest(),
        rows=rows,
    )


def _check_prompt(settings: Settings, prompt: str) -> None:
    try:
        fields = [part[1:] for part in string.Formatter().parse(prompt) if part[1] is not None]
    except ValueError as error:
        raise settings.error(f"prompt {short(prompt)}: {error}; write {{{{ for a brace") from error
    names = {name for name, _, _ in fields}
    # A width such as {question:>999999999} would be filled up with blanks.
    plain = not any(style or conversion for _, style, conversion in fields)
    if "question" not in names or not names <= {"question", "choices"} or not plain:
        raise settings.error(
            f"prompt {short(prompt)} must have {{question}}, may have {{choices}}, and nothing "
            "else in braces; write {{ and }} for braces"
        )


def _fill(prompt: str, row: Row) -> str:
    listed = zip(string.ascii_uppercase, row.choices, strict=False)
    return prompt.format(
        question=row.question,
        choices="\n".join(f"{letter}. {choice}" for letter, choice in listed),
    )


def _load(row: Row, frames: int | None) -> Media:
    if row.video is not None:
        return [read_video(row.video, frames)]
    return [read() for read in row.images]
