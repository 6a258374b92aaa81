"""`vlmcompress.check`: the laws on the user's own weights and a picture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmcompress.errors import VLMCompressError
from vlmcompress.laws.law import first_line
from vlmcompress.laws.laws import Laws
from vlmcompress.laws.places import grey_like
from vlmcompress.laws.report import CheckReport
from vlmcompress.laws.subject import Subject
from vlmcompress.media.images import read_image
from vlmcompress.media.video import Video, read_video
from vlmcompress.models.names import ASSETS
from vlmcompress.patches.engine import engine_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.standing import standing_of
from vlmcompress.prompts import prepare

SAMPLE = ASSETS / "samples" / "street.png"
_QUESTIONS = (
    "what color is the circle ?",
    "how many things are there , and what color is the largest one ?",
)
"""Of two lengths, so that a batch of them is padded."""
_CROP = 0.75
"""Share of the width of the picture that the second prompt shows."""


def check(
    model: Any,
    processor: Any,
    image: Image.Image | str | Path | None = None,
    video: Video | str | Path | None = None,
) -> CheckReport:
    """Check on a model that dropping visual tokens changes nothing but that they are gone.

    The cheap laws that the tests of vlmcompress ask of tiny models. What the bare model does not
    keep itself is void. Takes about a hundred forwards of one or two prompts, half of them short.

    Args:
        model: of a supported family, in evaluation mode, not compressed.
        processor: its own.
        image: a picture; a sample picture where no clip is given either.
        video: a clip, for models that take such.

    Returns:
        A result for each law; printable.

    Raises:
        VLMCompressError: the model is not supported, or compressed, or does not take the picture.
    """
    start = time.perf_counter()
    parts = ModelParts.of(model)
    parts.family.check(model)
    if engine_of(model) is not None:
        raise VLMCompressError("the model is compressed: call .remove() on its Compression first")
    if model.training:
        raise VLMCompressError("the model is in training mode: call .eval() first")
    media: dict[str, Image.Image | Video] = {}
    if image is not None or video is None:
        given = SAMPLE if image is None else image
        media["image"] = given if isinstance(given, Image.Image) else read_image(given)
    if video is not None:
        media["video"] = video if isinstance(video, Video) else read_video(video)
    results = [
        law.ask(name)
        for name, medium in media.items()
        for law in Laws(_subject(parts, processor, medium))
    ]
    standing = standing_of(parts.family.name)
    return CheckReport(
        model_type=parts.family.name,
        class_name=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=str(model.config._attn_implementation),
        standing=": ".join(filter(None, (standing.state, standing.reason))),
        results=results,
        seconds=time.perf_counter() - start,
    )


def _subject(parts: ModelParts, processor: Any, medium: Image.Image | Video) -> Subject:
    """Prompts about a picture and about a part of it, or about a clip and its mirror image."""
    model = parts.model
    pairs = list(zip((medium, _other(medium)), _QUESTIONS, strict=True))
    prompts = [([one], question) for one, question in pairs]
    alone = [prepare(model, processor, [prompt]) for prompt in prompts]
    both, no_batch = None, None
    try:
        both = prepare(model, processor, prompts)
    except VLMCompressError as error:
        no_batch = first_line(error)
    grey, corner = (
        prepare(model, processor, [([grey_like(medium, there)], _QUESTIONS[0])])
        for there in (False, True)
    )
    special = list(_special(parts, processor))
    return Subject(parts, alone, both, no_batch, grey, corner, special)


def _other(medium: Image.Image | Video) -> Image.Image | Video:
    """The mirror image of a clip; of a picture a part of another shape."""
    if isinstance(medium, Video):
        return replace(medium, frames=np.ascontiguousarray(medium.frames[:, :, ::-1]))
    return medium.crop((0, 0, max(1, round(medium.width * _CROP)), medium.height))


def _special(parts: ModelParts, processor: Any) -> Iterator[int]:
    """Tokens that mean something in a prompt."""
    tokenizer = getattr(processor, "tokenizer", processor)
    yield from getattr(tokenizer, "all_special_ids", [])
    config: Any = parts.model.config
    for name, value in config.to_dict().items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            yield value
