"""What the page shows of a question: answers side by side, and all methods on one picture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vlmcompress.asking.answer import Answer
from vlmcompress.asking.ask import compared, settings_of
from vlmcompress.asking.asker import Asker, reason_of
from vlmcompress.asking.comparison import Comparison
from vlmcompress.asking.setting import FULL, setting_of
from vlmcompress.defaults import ANSWER_TOKENS, AUTO
from vlmcompress.demo.settings import MAX_QUESTION, MOST_METHODS
from vlmcompress.errors import VLMCompressError
from vlmcompress.media.video import Video
from vlmcompress.methods import list_methods
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.report.numbers import mean_text
from vlmcompress.report.overlay import draw
from vlmcompress.tuned import ProfileLike, check_fits

_STAGES = ("encoder", "selection", "prefill", "decode", "other", "total")
_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "&<>\"'\\`*_{}[]()#+!|~$"}
"""What means something in HTML or Markdown."""
_WIDTH = 700
"""Of the frames of a clip beside each other: a column of the page shows two."""
_LEFT_OUT = frozenset({"full", "text-only", AUTO})
"""Of the gallery: both ends, and what is there under its own name."""


@dataclass(frozen=True)
class Panel:
    """One setting of a comparison."""

    name: str
    picture: Image.Image
    text: str
    """Markdown: the answer, tokens and times."""


class DemoModel:
    """A loaded model that answers one visitor at a time."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        max_memory: int | str | None = None,
        profile: ProfileLike | None = None,
    ) -> None:
        """Take a model as it is loaded.

        Args:
            model: of a supported family.
            processor: its own.
            name: for the page.
            max_memory: that the vision encoder may take for a clip; see `compress`.
            profile: adds "auto" to the methods, which is what it takes.

        Raises:
            VLMCompressError: no family serves the model, its clips cannot be cut, or the profile
                cannot be read or is of another model.
        """
        parts = ModelParts.of(model)
        check_fits(profile, model)
        self._full = replace(FULL, max_memory=max_memory)
        reason_of(model, processor, self._full)  # what it refuses it always would
        self._profile = profile
        self.name, self.video = name, parts.family.video
        self.layers = len(parts.layers)
        able = [info.name for info in list_methods() if info.stages & set(parts.family.stages)]
        self.methods = (*(() if profile is None else (AUTO,)), *able)
        self._model, self._processor = model, processor
        self._busy = threading.Lock()

    def compare(
        self, media: Image.Image | Video, question: str, methods: Sequence[str], budget: str
    ) -> Comparison:
        """The answer on all tokens and with each method, or why a method refuses.

        Raises:
            VLMCompressError: the question is empty or too long, or there are too many methods.
        """
        if len(methods) > MOST_METHODS:
            raise VLMCompressError(f"choose {MOST_METHODS} methods at most, got {len(methods)}")
        settings = settings_of(methods, budget, self._full.max_memory, self._profile)
        with self._busy:
            return compared(self._asker(media, question), settings, 1, self._full)

    def gallery(
        self,
        media: Image.Image | Video,
        question: str,
        budget: str,
        progress: Callable[[float, str], None],
    ) -> Iterator[tuple[Image.Image, str]]:
        """What every method that can keeps of it, each with a caption.

        Raises:
            VLMCompressError: the question is empty or too long.
        """
        names = [name for name in self.methods if name not in _LEFT_OUT]
        with self._busy:
            asker = self._asker(media, question)
            for number, name in enumerate(names):
                progress(number / len(names), name)
                try:
                    found = asker.run(setting_of(name, budget, max_memory=self._full.max_memory))
                except VLMCompressError:
                    continue  # it cannot meet this budget, or needs what the model does not give
                picture = draw([media], found.report.images, self._processor, width=_WIDTH)
                yield picture, f"{name}: {found.answer or '(empty)'}"

    def _asker(self, media: Image.Image | Video, question: str) -> Asker:
        if not question.strip():
            raise VLMCompressError("ask a question first")
        if len(question) > MAX_QUESTION:
            raise VLMCompressError(f"a question has {MAX_QUESTION} letters at most")
        return Asker(self._model, self._processor, [media], question, ANSWER_TOKENS)


def panels(found: Comparison, layer: int | None) -> list[Panel]:
    """One for each answer.

    Args:
        found: of `DemoModel.compare`.
        layer: shows what enters this decoder layer; None shows how far each patch gets.
    """
    return [
        Panel(one.setting.name, one.overlay(layer=layer, width=_WIDTH), _text(one)) for one in found
    ]


def changed(found: Comparison) -> str:
    """Markdown: which answers differ, and what was refused."""
    lines = [f"**What changed:** {escaped(found.changed())}"]
    lines += [
        f"**{escaped(name)}** is refused: {escaped(why)}" for name, why in found.refused.items()
    ]
    return "\n\n".join(lines)


def _text(one: Answer) -> str:
    rows = "".join(f"| {stage} | {one.milliseconds[stage]:.1f} |\n" for stage in _STAGES)
    why = "" if one.report.reason is None else f"{escaped(one.report.reason)}\n\n"
    return (
        f"### {escaped(one.answer) or '(empty)'}\n\n{_kept(one)}, mean over layers "
        f"{mean_text(one.mean)}\n\n{why}| stage | ms |\n| --- | ---: |\n{rows}"
    )


def _kept(one: Answer) -> str:
    return f"{one.after} of {one.before} tokens"


def escaped(text: str) -> str:
    """A text that Markdown shows letter by letter."""
    return text.translate(_MARKS)
