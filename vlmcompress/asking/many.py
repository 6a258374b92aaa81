"""Many questions in batches of one shape, answered in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from vlmcompress.api import Compression
from vlmcompress.asking.answer import Answer
from vlmcompress.asking.asker import compressed, with_other
from vlmcompress.asking.questions import Question
from vlmcompress.asking.setting import Setting
from vlmcompress.errors import VLMCompressError
from vlmcompress.prompts import Prompt, generate, prepare
from vlmcompress.report.report import Report

BATCHES = 8
"""Batches in a window: what is sorted by shape at a time, and written at once."""


class ManyAsker:
    """A model in one setting that answers questions window by window.

    No more is held than the questions of a window and the pictures of a batch.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        setting: Setting,
        *,
        batch: int,
        max_new_tokens: int,
        frames: int | None = None,
        fps: float | None = None,
    ) -> None:
        self._model, self._processor, self._setting = model, processor, setting
        self._batch, self._max_new_tokens = batch, max_new_tokens
        self._frames, self._fps = frames, fps

    @staticmethod
    def window_of(batch: int) -> int:
        """Questions that are looked at together."""
        return batch * BATCHES

    def answers(
        self, questions: Iterable[Question]
    ) -> Iterator[list[tuple[Question, Answer | VLMCompressError]]]:
        """A window after the other, each in the order of its questions.

        A question whose pictures cannot be read, or which the method refuses, has the error in the
        place of an answer.
        """
        left, size = iter(questions), self.window_of(self._batch)
        with compressed(self._model, self._processor, self._setting) as handle:
            while window := list(islice(left, size)):
                found: dict[int, Answer | VLMCompressError] = {}
                for places in _batches([one.shape() for one in window], self._batch):
                    asked = [window[place] for place in places]
                    found.update(zip(places, self._answer(handle, asked), strict=True))
                yield [(one, found[place]) for place, one in enumerate(window)]

    def _answer(
        self, handle: Compression, questions: Sequence[Question]
    ) -> list[Answer | VLMCompressError]:
        """Answers of one batch; where it is refused, of its members one by one."""
        try:
            prompts = [(one.read(self._frames, self._fps), one.text) for one in questions]
            return list(self._generate(handle, prompts))
        except VLMCompressError as error:
            if len(questions) == 1:
                return [error]
        return [self._answer(handle, [one])[0] for one in questions]

    def _generate(self, handle: Compression, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        inputs = prepare(self._model, self._processor, prompts)
        found = generate(self._model, self._processor, inputs, max_new_tokens=self._max_new_tokens)
        report = handle.report()
        times = with_other({**report.milliseconds, "total": found.milliseconds})
        for row, ((_, question), text) in enumerate(zip(prompts, found.texts, strict=True)):
            yield Answer(self._setting, text, _of_row(report, row), times, str(question))


def _of_row(report: Report, row: int) -> Report:
    """What a report says of one row of the batch."""
    return replace(report, images=[image for image in report.images if image.row == row])


def _batches(shapes: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Places of questions of one shape, so many at most; each that has none alone."""
    groups: dict[Any, list[int]] = {}
    for place, shape in enumerate(shapes):
        groups.setdefault(("alone", place) if shape is None else shape, []).append(place)
    for places in groups.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]
