"""Put one question to a model, reduced or not, and describe what happened."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from vlmcompress.api import compress
from vlmcompress.media.video import Video
from vlmcompress.methods.contracts.method import Method
from vlmcompress.prompts import generate, prepare
from vlmcompress.report.report import Report


@dataclass(frozen=True)
class AskSetting:
    """How a call is reduced."""

    label: str
    methods: str | Sequence[Method]
    budget: str | None
    positions: str


@dataclass(frozen=True)
class AskRun:
    """An answer, what the call did, and how long its stages took."""

    setting: AskSetting
    answer: str
    report: Report
    milliseconds: dict[str, float]
    """The report's stages, `other`, then `total`: all of `generate`. `other` is what the stages
    leave of the total, so that they add up to it."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what `--compare` sets side by side."""
        images = self.report.images
        return {
            "method": self.setting.label,
            "budget": self.setting.budget,
            "answer": self.answer,
            "tokens": {
                "before": sum(image.before for image in images),
                "after": sum(image.after for image in images),
                "mean": sum(image.mean for image in images),
            },
            "per_layer": [image.per_layer for image in images],
            "milliseconds": self.milliseconds,
            "decode_tokens": self.report.decode_tokens,
        }


class Asker:
    """One model, some images and videos and a question, ready to be run in several settings."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        media: Sequence[Image | Video],
        question: str,
        max_new_tokens: int,
    ) -> None:
        self.model, self.processor = model, processor
        self._max_new_tokens = max_new_tokens
        self.inputs = prepare(model, processor, [(media, question)])

    def run(self, setting: AskSetting) -> AskRun:
        """Answer once."""
        with compress(
            self.model,
            setting.methods,
            setting.budget,
            positions=setting.positions,  # type: ignore[arg-type]
            processor=self.processor,
        ) as compression:
            found = generate(
                self.model, self.processor, self.inputs, max_new_tokens=self._max_new_tokens
            )
            report = compression.report()
        milliseconds = {**report.milliseconds, "total": found.milliseconds}
        return AskRun(setting, found.texts[0], report, _with_other(milliseconds))

    def compare(self, settings: Sequence[AskSetting], repeat: int) -> list[AskRun]:
        """Answer in each setting, after a warm-up, in turn and `repeat` times.

        Returns:
            For each setting the run with the median total, of an even number the faster one of the
            two in the middle. Medians of each stage, of several runs, would not add up.
        """
        for setting in settings:
            self.run(setting)
        rounds = [[self.run(setting) for setting in settings] for _ in range(repeat)]
        return [_median(list(runs)) for runs in zip(*rounds, strict=True)]


def _median(runs: list[AskRun]) -> AskRun:
    middle = statistics.median_low(run.milliseconds["total"] for run in runs)
    return next(run for run in runs if run.milliseconds["total"] == middle)


def _with_other(times: dict[str, float]) -> dict[str, float]:
    """Times with `other` before `total`: sampling, embedding and whatever else takes its time."""
    stages = {name: time for name, time in times.items() if name != "total"}
    other = times["total"] - sum(stages.values())
    return {**stages, "other": other, "total": times["total"]}
