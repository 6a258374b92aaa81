"""What the commands share: errors, progress and files."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from logging import CRITICAL
from pathlib import Path
from typing import ParamSpec, TypeVar

import typer

from vlmcompress.cli.progress_bar import EVERY, shown
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import check_output
from vlmcompress.files.untrusted import one_line

P = ParamSpec("P")
R = TypeVar("R")


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make `command` print an error of ours as one line and exit with 2, and with 130 on Ctrl-C."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except VLMCompressError as error:
            if os.environ.get("RANK", "0") == "0":  # of `accelerate launch`: all see the same error
                typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(2) from error

    return guarded


def hush(wanted: bool) -> bool:
    """What `--quiet` does."""
    shown.quiet = wanted
    return wanted


def tell(notes: Iterable[str]) -> None:
    """Notes that are no errors, one a line on stderr."""
    for note in () if shown.quiet else notes:
        typer.echo(f"note: {one_line(note)}", err=True)


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """A spinner on stderr while the block runs, or a line once it takes long where that is no
    terminal."""
    if shown.quiet:
        yield
        return
    if not sys.stderr.isatty():
        told = threading.Timer(EVERY, lambda: typer.echo(f"{text} ...", err=True))
        told.daemon = True
        told.start()
        try:
            yield
        finally:
            told.cancel()
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and warnings of Hugging Face off stderr, and put their settings back."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_level = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The hub's client warns about each retry; that it failed in the end is said by our error.
    hub_logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep what C libraries write to stderr off it; decord reports each bad packet there.

    Works below Python's own stderr, on the file descriptor, which is put back afterwards.
    """
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""Suffixes of files for what was kept of a picture."""


def check_plot(path: Path | None) -> None:
    """Raise a VLMCompressError where a plot is asked for that could not be drawn or written."""
    if path is not None:
        from vlmcompress.profiler.plot import SUFFIXES, check_matplotlib

        check_output(path, SUFFIXES)
        check_matplotlib()


def between_commas(text: str) -> list[str]:
    """The parts between commas that are not inside parentheses."""
    from vlmcompress.methods.composition.spec import split

    return [part.strip() for part in split(text, ",")]
