"""An answer, and how it came about."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from vlmcompress.asking.setting import Setting
from vlmcompress.media.video import Video
from vlmcompress.report.report import Report


@dataclass(frozen=True)
class Answer:
    """What a model answered, what the call did, and how long its stages took.

    `answer, report = vlmcompress.ask(...)` takes it apart; `print(found)` shows the text, and a
    notebook also the picture.
    """

    setting: Setting
    answer: str
    """Without prompt, special tokens, and blanks at both ends."""
    report: Report
    milliseconds: dict[str, float]
    """The report's stages, `other`, then `total`: all of `generate`. `other` is what the stages
    leave of the total, so that they add up to it."""
    question: str = ""
    media: Sequence[Image | Video] = field(default=(), repr=False)
    """What was asked about."""

    @property
    def before(self) -> int:
        """Visual tokens of all images and clips."""
        return sum(image.before for image in self.report.images)

    @property
    def after(self) -> int:
        """Those that enter the decoder."""
        return sum(image.after for image in self.report.images)

    @property
    def mean(self) -> float:
        """Mean over decoder layers of those that enter each."""
        return sum(image.mean for image in self.report.images)

    def overlay(
        self, layer: int | None = None, model: str | None = None, width: int = 1600
    ) -> Image:
        """The pictures with dropped patches dimmed, over method, budget, question and answer.

        Args:
            layer: shows what enters this decoder layer; None shows how far each patch gets.
            model: a name to be written there as well.
            width: of the frames of a clip beside each other at most.
        """
        return self.report.overlay(
            self.media,
            question=self.question,
            answer=self.answer,
            model=model,
            layer=layer,
            width=width,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what `--compare` sets side by side."""
        budget = self.setting.budget
        return {
            "method": self.setting.label,
            "budget": None if budget is None else str(budget),
            "answer": self.answer,
            "tokens": {"before": self.before, "after": self.after, "mean": self.mean},
            "per_layer": [image.per_layer for image in self.report.images],
            "milliseconds": self.milliseconds,
            "decode_tokens": self.report.decode_tokens,
        }

    def __iter__(self) -> Iterator[Any]:
        return iter((self.answer, self.report))

    def __str__(self) -> str:
        return self.answer

    def _repr_html_(self) -> str:
        from vlmcompress.report.html import as_image

        text = html.escape(self.answer) or "<em>(empty)</em>"
        return (
            f"<div><p>{html.escape(self.question)}<br><strong>{text}</strong></p>"
            f"{as_image(self.overlay())}{self.report._repr_html_()}</div>"
        )
