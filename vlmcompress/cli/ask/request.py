"""The arguments of `ask`, checked as far as that goes without loading a model."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.cli.ask.media import MediaArguments, default_model, name_media, read
from vlmcompress.cli.common import PICTURES
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import check_output

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmcompress.asking.setting import Setting
    from vlmcompress.media.video import Video


@dataclass(frozen=True)
class Request:
    """What is asked of which model, and how it is reduced."""

    question: str
    files: list[str]
    media: list[Image | Video]
    """What is in the files."""
    model: str
    setting: Setting
    notes: list[str]
    """What the user should know about the files."""


def check(
    arguments: MediaArguments,
    model: str | None,
    method: str | None,
    budget: str | None,
    options: Sequence[str],
    overlay: Path | None,
    positions: str = "keep",
    max_memory: str | None = None,
    profile: Path | None = None,
) -> Request:
    """Read the images and videos and check everything else, the cheapest first.

    Raises:
        VLMCompressError: what is wrong and what would be right.
    """
    named = name_media(arguments)
    if overlay is not None:
        check_output(overlay, PICTURES)

    from vlmcompress.models.names import resolve

    if model is None:
        model = default_model(named.has_video)
    resolve(model)

    found = setting(method, budget, options, positions, max_memory, profile)
    media = [read(file, kind, arguments) for file, kind in named.files]
    files = [file for file, _ in named.files]
    return Request(named.question, files, media, model, found, named.notes)


def setting(
    method: str | None,
    budget: str | None,
    options: Sequence[str],
    positions: str,
    max_memory: str | None = None,
    profile: Path | None = None,
) -> Setting:
    """What the command line says of method and budget; see `setting_of`."""
    from vlmcompress.asking.setting import setting_of

    return setting_of(
        method, budget, options_of(options), positions, max_memory=max_memory, profile=profile
    )


def options_of(pairs: Sequence[str]) -> dict[str, Any]:
    """`["k=3", "layers=[2, 4]"]` as Python values; what is no literal is a text.

    Raises:
        VLMCompressError: a pair is malformed, or a name comes twice.
    """
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
