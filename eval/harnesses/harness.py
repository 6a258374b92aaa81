"""What plug-ins into other people's evaluation harnesses share: settings, prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from vlmcompress.api import compress
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.memory import bytes_of
from vlmcompress.defaults import AUTO
from vlmcompress.errors import MediaError, UnsupportedModelError, VLMCompressError
from vlmcompress.eval.run import answering
from vlmcompress.eval.run.answering import Outcome
from vlmcompress.eval.run.cases import FULL
from vlmcompress.media.images import read_image
from vlmcompress.media.video import DEFAULT_FPS, Video, check_sampling, read_video
from vlmcompress.methods.composition.spec import parse
from vlmcompress.models.loading import load
from vlmcompress.prompts import Prompt, prepare
from vlmcompress.registry import unknown
from vlmcompress.tuned import Tuned, asked_for

NONE = "none"
"""Another name of `full`, the run that others are compared with."""

_FOR_COMPRESS = ("positions", "order", "text_tower", "max_memory", "profile")
_FOR_LOADING = ("attn_implementation", "trust_remote_code", "revision")


@dataclass(frozen=True)
class HarnessSettings:
    """How a harness runs a model. What is None is left to `load`, `compress` or `read_video`.

    Attributes:
        pretrained: a built-in name, a folder or a Hugging Face id.
        method: a spec such as "divprune(ratio=0.1)+fastv(k=3)"; "none" or "full" for the baseline.
        budget: as `Budget.parse` takes it.
        positions: see `compress`; so are `order`, `text_tower`, `max_memory` and `profile`.
        device: see `load`; so is `dtype`.
        attn_implementation: for transformers; so are `trust_remote_code` and `revision`.
        frames: how many of a clip, or fps: how many a second; see `read_video`.
    """

    pretrained: str
    method: str
    budget: str | None = None
    positions: str | None = None
    order: str | None = None
    text_tower: str | None = None
    max_memory: int | str | None = None
    profile: str | None = None
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool | None = None
    revision: str | None = None
    frames: int | None = None
    fps: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> HarnessSettings:
        """Check what a user gave by keyword; harnesses turn "64" into a number and keep quotes.

        Raises:
            VLMCompressError: a name that is unknown, or one that has to be given and is not; or a
                method, budget, size or profile that cannot be read.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("argument of vlmcompress", name, known)
        values = {name: _unquoted(value) for name, value in given.items()}
        texts = ("pretrained", "method", "budget", "revision", "profile")
        values |= {name: str(values[name]) for name in texts if values.get(name) is not None}
        # Mistakes are found here, before a model is loaded.
        values["method"] = asked_for(values.get("method"), values.get("profile"))
        for name in ("pretrained", "method"):
            if values.get(name) is None:
                raise VLMCompressError(
                    f"{name}= is missing: give for example pretrained=tiny-llava,method=divprune,"
                    f"budget=25%, and method={NONE} for the baseline"
                )
        if values["method"] == NONE:
            values["method"] = FULL
        if values["method"] != AUTO:
            parse(values["method"])
        for name, check in (("budget", Budget.parse), ("max_memory", bytes_of)):
            if values.get(name) is not None:
                check(values[name])
        if values.get("profile") is not None and values.get("budget") is None:
            Tuned.read(values["profile"]).nearest(None)
        check_sampling(values.get("frames"), values.get("fps"))
        return cls(**values)

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        """The settings called `names` that are not None, by name."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class HarnessAnswer:
    """The answer to one prompt.

    Attributes:
        text: without blanks at both ends.
        input_tokens: of the prompt, text and pictures, as the mean over the decoder's layers of
            those that enter it, rounded. Newline embeddings of pictures are counted as they were.
        output_tokens: of the text, its end included.
        before: visual tokens before any method.
        kept: of those the true mean over the decoder's layers.
    """

    text: str
    input_tokens: int
    output_tokens: int
    before: int
    kept: float


class Subject:
    """A loaded and compressed model that answers prompts.

    Raises:
        VLMCompressError: what `load` and `compress` raise.
    """

    def __init__(self, settings: HarnessSettings) -> None:
        self.settings = settings
        loading = settings.given(_FOR_LOADING)
        self.model, self._processor = load(
            settings.pretrained, device=settings.device, dtype=settings.dtype, **loading
        )
        self._handle = compress(
            self.model,
            settings.method,
            settings.budget,
            processor=self._processor,
            **settings.given(_FOR_COMPRESS),
        )
        self.seconds = 0.0
        """Seconds of all calls of `generate` so far."""

    def ask(self, prompts: Sequence[Prompt], **generation: Any) -> list[HarnessAnswer]:
        """Answer some prompts, those with images, with videos and with neither each in one batch.

        Args:
            prompts: for example of `conversation`.
            generation: arguments of `generate`; without any it is greedy.

        Raises:
            VLMCompressError: the model, or these images, cannot be asked so.
        """
        answers: dict[int, HarnessAnswer] = {}
        for places in alike([_media(prompt) for prompt in prompts]):
            found = self._ask([prompts[place] for place in places], generation)
            answers |= dict(zip(places, found, strict=True))
        return [answers[place] for place in range(len(prompts))]

    def _ask(self, prompts: Sequence[Prompt], generation: dict[str, Any]) -> list[HarnessAnswer]:
        inputs = prepare(self.model, self._processor, prompts)
        found = answering.run(self._handle, self._processor, inputs, **generation)
        self.seconds += found.seconds
        lengths = [int(length) for length in inputs["attention_mask"].sum(dim=1)]
        return [_answer(found, row, length) for row, length in enumerate(lengths)]


def alike(kinds: Sequence[Any]) -> list[list[int]]:
    """The places of equal kinds together, in the order in which they first come."""
    groups: list[tuple[Any, list[int]]] = []
    for place, kind in enumerate(kinds):
        for known, places in groups:
            if known == kind:
                places.append(place)
                break
        else:
            groups.append((kind, [place]))
    return [places for _, places in groups]


def conversation(messages: Sequence[Mapping[str, Any]], settings: HarnessSettings) -> Prompt:
    """A chat in the form of OpenAI or lmms-eval: media stay where they are between the texts.

    Args:
        messages: `{"role": ..., "content": text or [part, ...]}` with parts `{"type": "text",
            "text": ...}`, and `{"type": "image" or "video", "url": ...}`; see `image_of` and
            `video_of` for what an url may be.
        settings: how clips are sampled.

    Raises:
        VLMCompressError: a part of another type, or of a clip.
        MediaError: an image or a video that cannot be read.
    """
    media: list[Image | Video] = []
    turns = []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        content = [_part(part, media, settings) for part in parts]
        turns.append({"role": message["role"], "content": content})
    return media, turns


def image_of(given: Any) -> Image:
    """An image as RGB from a PIL image or a path.

    Raises:
        MediaError: it is neither, or the file cannot be read.
    """
    if isinstance(given, Image):
        return given.convert("RGB")
    if isinstance(given, (str, Path)):
        return read_image(given)
    raise MediaError(f"an image must be a PIL image or a path, not a {type(given).__name__}")


def video_of(given: Any, settings: HarnessSettings) -> Video:
    """A clip from a path, from a `Video`, or from frames.

    Args:
        given: frames are a list of PIL images or an [frames, H, W, 3] array of bytes; they are
            taken to be `settings.fps` (or 2) a second, and `settings.frames` of them are used.
        settings: how files are sampled.

    Raises:
        MediaError: it is none of these, or the file cannot be read.
    """
    if isinstance(given, Video):
        return given
    if isinstance(given, (str, Path)):
        return read_video(given, settings.frames, settings.fps)
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, Image) for one in given):
        if len({one.size for one in given}) > 1:
            raise MediaError("the frames of a clip must have one size")
        given = np.stack([np.asarray(one.convert("RGB")) for one in given])
    if not (isinstance(given, np.ndarray) and given.dtype == np.uint8 and _is_clip(given.shape)):
        raise MediaError(
            "a video must be a path, a list of PIL images or an array [frames, H, W, 3] of bytes, "
            f"not {_shown(given)}"
        )
    total, rate = len(given), settings.fps or DEFAULT_FPS
    count = min(settings.frames or total, total)
    indices = [int(index) for index in np.linspace(0, total - 1, count).round()]
    times = [index / rate for index in indices]
    return Video(given[indices], indices, times, total, rate, True, "array")


def _part(part: Mapping[str, Any], media: list[Image | Video], settings: HarnessSettings) -> Any:
    """The part as a chat template takes it; what it shows is added to `media`."""
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    url = part.get("url")
    if kind == "image":
        media.append(image_of(url))
    elif kind == "video":
        bounds = ("start_time", "end_time", "video_start", "video_end")
        asked = {**part, **(url if isinstance(url, dict) else {})}
        if any(asked.get(name) is not None for name in bounds):
            raise VLMCompressError("a part of a clip is asked for, which is not supported: cut it")
        media.append(video_of(url, settings))
    else:
        raise UnsupportedModelError(f"prompts may hold text, images and videos, but no {kind}")
    return {"type": kind}


def _media(prompt: Prompt) -> tuple[bool, bool]:
    """Whether it holds images, and videos."""
    clips = [isinstance(one, Video) for one in prompt[0]]
    return not all(clips), any(clips)


def _answer(found: Outcome, row: int, length: int) -> HarnessAnswer:
    before, kept = found.before[row], found.mean[row]
    entering = length - before + round(kept)
    return HarnessAnswer(found.answers[row], entering, found.output_tokens[row], before, kept)


def _unquoted(value: Any) -> Any:
    """Quotes that kept a comma together."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _is_clip(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[0] > 0 and shape[3] == 3


def _shown(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"{list(given.shape)} of {given.dtype}"
    return f"a {type(given).__name__}"
