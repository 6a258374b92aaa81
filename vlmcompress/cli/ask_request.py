"""The arguments of `ask`, checked as far as that goes without loading a model."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress import defaults
from vlmcompress.cli.common import silent_libraries
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.files import check_output
from vlmcompress.media.images import check_file, read_image
from vlmcompress.media.video import VIDEO_SUFFIXES, Video, check_sampling, read_video

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmcompress.methods.composition.pipeline import Pipeline
    from vlmcompress.methods.contracts.method import Method

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class MediaArguments:
    """What the command line says about media and question."""

    words: Sequence[str]
    """Arguments without a name."""
    images: Sequence[str]
    videos: Sequence[str]
    question: str | None
    frames: int | None
    fps: float | None


@dataclass(frozen=True)
class Request:
    """What is asked of which model, and how it is reduced."""

    question: str
    files: list[str]
    media: list[Image | Video]
    """What is in the files."""
    model: str
    method: str
    """As the user wrote it."""
    methods: str | tuple[Method, ...]
    """"auto" where it depends on the model which."""
    budget: str | None


def check(
    arguments: MediaArguments,
    model: str | None,
    method: str | None,
    budget: str | None,
    options: Sequence[str],
    overlay: Path | None,
) -> Request:
    """Read the images and videos and check everything else, the cheapest first.

    Raises:
        VLMCompressError: what is wrong and what would be right.
    """
    named, question = _media_and_question(arguments)
    for file, kind in named:
        check_file(file, kind)
    has_video = any(kind == "video" for _, kind in named)
    _check_sampling(arguments, has_video)
    if overlay is not None:
        check_output(overlay, _PICTURES)

    from vlmcompress.models.names import resolve

    model = model or (defaults.VIDEO_MODEL if has_video else defaults.MODEL)
    resolve(model)

    from vlmcompress.budget.budget import Budget

    methods, has_default = _methods(method or defaults.METHOD, _options(options))
    if budget is not None:
        Budget.parse(budget)
    elif method is None or not has_default:
        budget = defaults.BUDGET
    media = [_read(file, kind, arguments) for file, kind in named]
    files = [file for file, _ in named]
    return Request(question, files, media, model, method or defaults.METHOD, methods, budget)


def _media_and_question(arguments: MediaArguments) -> tuple[list[tuple[str, str]], str]:
    """Files, each with "image" or "video", and the question.

    Arguments without a name are files, but the last is the question unless that came by name.
    """
    words, question = list(arguments.words), arguments.question
    if question is None:
        if not words:
            raise VLMCompressError('no question: give one, as in vlmcompress ask image.png "..."')
        question = words.pop()
        if _is_file(question):
            raise VLMCompressError(f"no question: the last argument {question!r} is a file")
    if not question.strip():
        raise VLMCompressError("the question is empty")
    files = [(word, _kind(word)) for word in words]
    files += [(file, "image") for file in arguments.images]
    files += [(file, "video") for file in arguments.videos]
    if not files:
        raise VLMCompressError(
            "no image and no video: give a file before the question, or with --image or --video"
        )
    return files, question


def _is_file(text: str) -> bool:
    """Whether a text names a file; a question may be longer than a name can be."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _kind(file: str) -> str:
    return "video" if Path(file).suffix.lower() in VIDEO_SUFFIXES else "image"


def _check_sampling(arguments: MediaArguments, has_video: bool) -> None:
    if arguments.frames is not None and arguments.fps is not None:
        raise VLMCompressError("--frames and --fps are both given: give one of them")
    if not has_video and (arguments.frames is not None or arguments.fps is not None):
        raise VLMCompressError("--frames and --fps are for videos, but no video is given")
    check_sampling(arguments.frames, arguments.fps)


def _read(file: str, kind: str, arguments: MediaArguments) -> Image | Video:
    if kind == "image":
        return read_image(file)
    with silent_libraries():
        return read_video(file, arguments.frames, arguments.fps)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["k=3", "layers=[2, 4]"]` as Python values; what is no literal is a text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise VLMCompressError(f"option {pair!r} is not of the form KEY=VALUE")
        if name in options:
            raise VLMCompressError(f"option {name!r} is given twice")
        try:
            options[name] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            options[name] = text.strip()
    return options


def _methods(spec: str, options: dict[str, Any]) -> tuple[str | tuple[Method, ...], bool]:
    """The methods of a spec, and whether they can work without a budget."""
    from vlmcompress.methods.composition.spec import parse

    if spec == defaults.AUTO:
        if options:
            raise VLMCompressError(f"{defaults.AUTO} has no options, got {', '.join(options)}")
        return spec, False
    pipeline = parse(spec, **options)
    return pipeline.methods, _works_without_budget(pipeline)


def _works_without_budget(pipeline: Pipeline) -> bool:
    """Whether every method has a setting of its own.

    All decoder methods do, and theirs may be for one depth only, which nobody knows before the
    model is loaded; the others do not look at the depth.
    """
    from vlmcompress.tokens import Grid

    before = [method for method in pipeline.methods if method is not pipeline.decoder]
    try:
        if before:
            pipeline.of(before).plan(Grid(1, 24, 24), 2, None)
    except BudgetError:
        return False
    return True
