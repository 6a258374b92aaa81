"""The arguments of `ask`, checked as far as that goes without loading a model."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.cli.common import check_output
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.media import check_file, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmcompress.methods.base import Method
    from vlmcompress.methods.pipeline import Pipeline

_METHOD, _BUDGET = "divprune", "25%"
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class Request:
    """What is asked of which model, and how it is reduced."""

    question: str
    files: list[str]
    images: list[Image]
    model: str
    method: str
    """As the user wrote it."""
    methods: tuple[Method, ...]
    budget: str | None


def check(
    given: Sequence[str],
    files: Sequence[str],
    question: str | None,
    model: str,
    method: str | None,
    budget: str | None,
    options: Sequence[str],
    overlay: Path | None,
) -> Request:
    """Read the images and check everything else, the cheapest first.

    Raises:
        VLMCompressError: what is wrong and what would be right.
    """
    files, question = _images_and_question(given, files, question)
    for file in files:
        check_file(file)
    if overlay is not None:
        check_output(overlay, _PICTURES)
    images = [read_image(file) for file in files]

    from vlmcompress.loading import resolve

    resolve(model)

    from vlmcompress.budget import Budget
    from vlmcompress.methods.pipeline import parse

    pipeline = parse(method or _METHOD, **_options(options))
    if budget is None:
        budget = _BUDGET if method is None or _has_no_default(pipeline) else None
    else:
        Budget.parse(budget)
    return Request(question, files, images, model, method or _METHOD, pipeline.methods, budget)


def _images_and_question(
    given: Sequence[str], files: Sequence[str], question: str | None
) -> tuple[list[str], str]:
    """Positional arguments are images, but the last is the question unless that came by name."""
    given = list(given)
    if question is None:
        if not given:
            raise VLMCompressError('no question: give one, as in vlmcompress ask image.png "..."')
        question = given.pop()
        if Path(question).is_file():
            raise VLMCompressError(f"no question: the last argument {question!r} is a file")
    if not question.strip():
        raise VLMCompressError("the question is empty")
    files = [*given, *files]
    if not files:
        raise VLMCompressError("no image: give a file before the question, or with --image")
    return files, question


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


def _has_no_default(pipeline: Pipeline) -> bool:
    """Whether a method of the pipeline cannot work without a budget."""
    from vlmcompress.tokens import Grid

    try:
        pipeline.plan(Grid(1, 24, 24), 32, None)
    except BudgetError:
        return True
    return False
