"""How far a long run is, and how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 30.0
"""Seconds between lines where stderr is no terminal."""


class Part(Protocol):
    """Which of several processes this is."""

    @property
    def rank(self) -> int: ...


class _Alone:
    """The only process."""

    rank = 0


ALONE: Part = _Alone()


class Advance:
    """A bar with the time left on stderr, or now and then a line where that is no terminal.

    Args:
        steps: of this process.
        part: only the first process shows anything, as if all were as far.
        done: steps that were done before.
        quiet: nobody shows anything.
    """

    def __init__(self, steps: int, part: Part = ALONE, done: int = 0, quiet: bool = False) -> None:
        self._steps, self._part, self._done = steps, part, done
        self._shows, self._before = part.rank == 0 and not quiet, done
        self._started = self._told = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Advance:
        if self._shows and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = BarColumn(), "{task.percentage:3.0f} %", TimeRemainingColumn()
            text = TextColumn("{task.description}")
            self._bar = Progress(*columns, text, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task("", total=self._steps, completed=self._done)
        return self

    def __call__(self, steps: int, what: str) -> None:
        """So many steps more are done."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=steps, description=what)
        elif self._shows and time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            share = self._done / self._steps
            since = (self._done - self._before) / self._steps
            left = (self._told - self._started) * (1 - share) / since
            typer.echo(f"{share:4.0%}, {left / 60:.1f} min left: {what}", err=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
