"""What the evaluation asks: samples of tasks, and how a task scores an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from vlmcompress.media.video import Video

Media = Sequence[Image | Video]


@dataclass(frozen=True)
class Sample:
    """One question about some images or one clip.

    Attributes:
        task: name of its task.
        index: place in the task, from 0; the same for the same task, seed and version.
        kind: what it asks for, such as "count"; reports show kinds apart.
        wording: which of the task's wordings the question has, from 0.
        question: the text as it is asked.
        answers: what counts as right; several where several are accepted or people disagree.
        load: reads or draws the images and clips.
        extra: what a metric needs besides, such as choices.
    """

    task: str
    index: int
    kind: str
    wording: int
    question: str
    answers: tuple[str, ...]
    load: Callable[[], Media]
    extra: Any = None


class Task(Protocol):
    """A source of samples with a metric.

    Attributes:
        name: letters, digits, "-", "_" and "/".
        version: counts up whenever its questions or scores change.
        medium: "image" or "video".
        metric: its name, see `vlmcompress.eval.metrics`.
        max_new_tokens: length of an answer.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def medium(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def max_new_tokens(self) -> int: ...

    def samples(self, limit: int | None, seed: int) -> Sequence[Sample]:
        """The first `limit` samples (None: all) of the order or the worlds that `seed` stands for.

        Raises:
            VLMCompressError: the data cannot be read.
        """
        ...

    def score(self, sample: Sample, answer: str) -> float:
        """How right an answer is, from 0 to 1."""
        ...

    def describe(self) -> dict[str, Any]:
        """For provenance: name, version, metric, where the data come from and what they hash to."""
        ...
