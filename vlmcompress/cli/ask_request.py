"""The arguments of `ask`, checked as far as that goes without loading a model."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress import defaults
from vlmcompress.cli.ask_media import MediaArguments, name_media, read
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.files import check_output

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmcompress.media.video import Video
    from vlmcompress.methods.composition.pipeline import Pipeline
    from vlmcompress.methods.contracts.method import Method

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


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
    notes: list[str]
    """What the user should know about the files."""


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
    named = name_media(arguments)
    if overlay is not None:
        check_output(overlay, _PICTURES)

    from vlmcompress.models.names import resolve

    if model is None:
        model = defaults.VIDEO_MODEL if named.has_video else defaults.MODEL
    resolve(model)

    from vlmcompress.budget.budget import Budget

    spec = defaults.METHOD if method is None else method
    methods, has_default = _methods(spec, _options(options))
    if budget is not None:
        Budget.parse(budget)
    elif method is None or not has_default:
        budget = defaults.BUDGET
    media = [read(file, kind, arguments) for file, kind in named.files]
    files = [file for file, _ in named.files]
    return Request(named.question, files, media, model, spec, methods, budget, named.notes)


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
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
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
