"""Put one question to a model, reduced or not, and describe what happened."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from vlmcompress.api import Compression, compress
from vlmcompress.arguments import check_count
from vlmcompress.asking.answer import Answer
from vlmcompress.asking.setting import Setting
from vlmcompress.media.video import Video
from vlmcompress.prompts import Turn, generate, prepare


class Asker:
    """One model, some images and videos and a question, ready to be run in several settings."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        media: Sequence[Image | Video],
        question: str,
        max_new_tokens: int,
        conversation: Sequence[Turn] | None = None,
    ) -> None:
        """Prepare the prompt: the question behind the media, or a conversation that ends with it.

        Raises:
            VLMCompressError: `max_new_tokens` is no count, or see `prepare`.
        """
        check_count("max_new_tokens", max_new_tokens)
        self.model, self.processor = model, processor
        self._media, self._question = media, question
        self._max_new_tokens = max_new_tokens
        prompt = question if conversation is None else conversation
        self.inputs = prepare(model, processor, [(media, prompt)])

    def run(self, setting: Setting) -> Answer:
        """Answer once."""
        with compressed(self.model, self.processor, setting) as compression:
            found = generate(
                self.model, self.processor, self.inputs, max_new_tokens=self._max_new_tokens
            )
            report = compression.report()
        times = with_other({**report.milliseconds, "total": found.milliseconds})
        return Answer(setting, found.texts[0], report, times, self._question, self._media)

    def compare(self, settings: Sequence[Setting], repeat: int) -> list[Answer]:
        """Answer in each setting, after a warm-up, in turn and `repeat` times.

        Returns:
            For each setting the answer with the median total, of an even number the faster one of
            the two in the middle. Medians of each stage, of several answers, would not add up.
        """
        for setting in settings:
            self.run(setting)
        return self.rounds(settings, repeat)

    def rounds(self, settings: Sequence[Setting], repeat: int) -> list[Answer]:
        """As `compare`, of settings that ran before."""
        rounds = [[self.run(setting) for setting in settings] for _ in range(repeat)]
        return [_median(list(runs)) for runs in zip(*rounds, strict=True)]


def compressed(model: Any, processor: Any, setting: Setting) -> Compression:
    """The model with a setting on it, until the handle is removed."""
    return compress(
        model,
        setting.methods,
        setting.budget,
        positions=setting.positions,  # type: ignore[arg-type]
        processor=processor,
        text_tower=setting.text_tower,
        max_memory=setting.max_memory,
        profile=setting.profile,
    )


def reason_of(model: Any, processor: Any, setting: Setting) -> str | None:
    """What "auto" takes in a setting and why; None where a method is named.

    Raises:
        VLMCompressError: what `compress` refuses, for a caller who would hear it with every answer.
    """
    with compressed(model, processor, setting) as handle:
        return handle.report().reason


def _median(runs: list[Answer]) -> Answer:
    middle = statistics.median_low(run.milliseconds["total"] for run in runs)
    return next(run for run in runs if run.milliseconds["total"] == middle)


def with_other(times: Mapping[str, float]) -> dict[str, float]:
    """Times with `other` before `total`: sampling, embedding and whatever else takes its time."""
    stages = {name: time for name, time in times.items() if name != "total"}
    other = times["total"] - sum(stages.values())
    return {**stages, "other": other, "total": times["total"]}
