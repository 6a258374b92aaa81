"""Put one question to a model, reduced or not, and describe what happened."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError, VLMCompressError
from vlmcompress.methods.base import Method
from vlmcompress.patches import FAMILIES, family_of
from vlmcompress.report import Report
from vlmcompress.video import Video


@dataclass(frozen=True)
class Setting:
    """How a call is reduced."""

    label: str
    methods: str | Sequence[Method]
    budget: str | None
    positions: str


@dataclass(frozen=True)
class Run:
    """An answer, what the call did, and how long its stages took."""

    setting: Setting
    answer: str
    report: Report
    milliseconds: dict[str, float]
    """The report's stages, then `total`: all of `generate`. Medians where there were several."""

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
        self.inputs = self._prepare(media, question)

    def run(self, setting: Setting) -> Run:
        """Answer once."""
        with compress(
            self.model,
            setting.methods,
            setting.budget,
            positions=setting.positions,  # type: ignore[arg-type]
            processor=self.processor,
        ) as compression:
            start = self._now()
            ids = self.model.generate(
                **self.inputs, max_new_tokens=self._max_new_tokens, do_sample=False
            )
            total = (self._now() - start) * 1000
            report = compression.report()
        new = ids[0, self.inputs["input_ids"].shape[1] :]
        answer = self.processor.decode(new, skip_special_tokens=True).strip()
        return Run(setting, answer, report, {**report.milliseconds, "total": total})

    def compare(self, settings: Sequence[Setting], repeat: int) -> list[Run]:
        """Answer in each setting, after a warm-up, in turn and `repeat` times.

        Returns:
            One run for each setting with the medians of its times.
        """
        for setting in settings:
            self.run(setting)
        rounds = [[self.run(setting) for setting in settings] for _ in range(repeat)]
        return [_median(list(runs)) for runs in zip(*rounds, strict=True)]

    def _prepare(self, media: Sequence[Image | Video], question: str) -> Any:
        """The model's inputs, the pictures before the question and in the order given."""
        clips = [one for one in media if isinstance(one, Video)]
        _check_family(self.model, bool(clips))
        content = [{"type": "video" if isinstance(one, Video) else "image"} for one in media]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        try:
            text = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        except ValueError as error:
            raise VLMCompressError(f"the model's chat template does not work: {error}") from error
        given: dict[str, Any] = {"text": text, "return_tensors": "pt"}
        images = [one for one in media if not isinstance(one, Video)]
        if images:
            given["images"] = images
        if clips:
            given |= self._video_arguments(clips)
        if images and clips:
            _check_mixture(self.processor)
        try:
            inputs = self.processor(**given)
        except ValueError as error:
            raise VLMCompressError(f"the model's processor refuses the input: {error}") from error
        inputs = inputs.to(self.model.device)
        for name in inputs:
            # Times of frames are floats as well, and half precision would shift positions.
            if name.startswith("pixel_values"):
                inputs[name] = inputs[name].to(self.model.dtype)
        return inputs

    def _video_arguments(self, clips: Sequence[Video]) -> dict[str, Any]:
        """Frames as they were sampled, with their times, and nothing left to changing defaults."""
        arguments: dict[str, Any] = {
            "videos": [[clip.frames for clip in clips]],  # of one prompt
            "video_metadata": [clip.metadata() for clip in clips],
            "do_sample_frames": False,
        }
        settings = self.processor.video_processor
        if hasattr(settings, "cap_pixels_per_frame"):
            arguments["cap_pixels_per_frame"] = bool(settings.cap_pixels_per_frame)
        return arguments

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def _check_family(model: Any, clips: bool) -> None:
    family = family_of(model)
    if clips and not family.video:
        able = ", ".join(name for name, kind in FAMILIES.items() if kind.video)
        raise UnsupportedModelError(
            f"{family.name} models take images but no videos; families that take both: {able}"
        )


def _check_mixture(processor: Any) -> None:
    """SmolVLM's processor has one place for pixels, so that clips overwrite images."""
    parts = processor.image_processor, processor.video_processor
    if set.intersection(*(set(part.model_input_names) for part in parts)):
        raise UnsupportedModelError(
            f"{type(processor).__name__} takes images or videos in one prompt, not both"
        )


def _median(runs: list[Run]) -> Run:
    stages = runs[0].milliseconds
    times = {stage: statistics.median(run.milliseconds[stage] for run in runs) for stage in stages}
    return Run(runs[0].setting, runs[0].answer, runs[0].report, times)
