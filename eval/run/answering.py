"""Answers of a model to a batch of samples under one case, and how many tokens were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlmcompress.api import Compression, compress
from vlmcompress.eval.run.cases import FULL, ONE_FRAME, Case
from vlmcompress.eval.tasks.task import Media, Sample
from vlmcompress.media.video import Video
from vlmcompress.prompts import generate, prepare
from vlmcompress.report.report import Report


@dataclass(frozen=True)
class Outcome:
    """Answers, tokens and times of a batch."""

    answers: list[str]
    before: list[int]
    """Visual tokens of each row before any method."""
    mean: list[float]
    """Visual tokens of each row that were kept, as the true mean over the decoder's layers."""
    images: list[int]
    """Images and clips of each row; a budget counts for each of them."""
    output_tokens: list[int]
    """Generated tokens of each row, without padding behind its end."""
    seconds: float
    """Wall time of `generate`, the selection included."""
    milliseconds: dict[str, float]
    """The stages of the report."""


class Batch:
    """Some samples, read and made ready once for all cases."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Sample],
        max_memory: int | str | None = None,
    ) -> None:
        self._model, self._processor = model, processor
        self.samples, self.max_memory = samples, max_memory
        self._inputs: dict[bool, Any] = {}

    def inputs(self, case: Case) -> Any:
        """The inputs of `generate`; made at the first call."""
        frozen = case.method == ONE_FRAME
        if frozen not in self._inputs:
            prompts = [
                (_one_frame(media) if frozen else media, sample.question)
                for sample in self.samples
                for media in [sample.load()]
            ]
            self._inputs[frozen] = prepare(self._model, self._processor, prompts)
        return self._inputs[frozen]


def answer(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    case: Case,
    max_memory: int | str | None = None,
    **generation: Any,
) -> Outcome:
    """Answer one batch under a case; the model is as it was afterwards.

    Args:
        model: not compressed.
        processor: its own.
        inputs: of `prepare`, padded on the left.
        case: method and budget.
        max_memory: see `compress`.
        generation: arguments of `generate`; without any it is greedy.

    Raises:
        VLMCompressError: the model, or these images, cannot run the case.
    """
    method = FULL if case.method == ONE_FRAME else case.method
    with compress(model, method, case.budget, processor=processor, max_memory=max_memory) as handle:
        return run(handle, processor, inputs, **generation)


def run(
    handle: Compression, processor: Any, inputs: Mapping[str, Any], **generation: Any
) -> Outcome:
    """Answer one batch with a compressed model; arguments and errors are those of `answer`."""
    model: Any = handle.model
    found = generate(model, processor, inputs, **generation)
    report = handle.report()
    before, mean, images = tokens_of(report, len(found.texts))
    return Outcome(
        found.texts,
        before,
        mean,
        images,
        [length_of(row, model) for row in found.ids],
        found.milliseconds / 1000,
        dict(report.milliseconds),
    )


def _one_frame(media: Media) -> Media:
    """Clips that repeat their middle frame, so that nothing moves in them."""
    return [
        replace(one, frames=one.frames[[len(one.frames) // 2] * len(one.frames)])
        if isinstance(one, Video)
        else one
        for one in media
    ]


def tokens_of(report: Report, rows: int) -> tuple[list[int], list[float], list[int]]:
    """Tokens before, mean kept, and images, of each row."""
    before, mean, images = [0] * rows, [0.0] * rows, [0] * rows
    for image in report.images:
        before[image.row] += image.before
        mean[image.row] += image.mean
        images[image.row] += 1
    return before, mean, images


def length_of(row: torch.Tensor, model: Any) -> int:
    """Tokens up to the first that ends a text, which counts as well."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    stops = [i for i, token in enumerate(row.tolist()) if token in ends]
    return stops[0] + 1 if stops else len(row)
