"""`ask` about many files: a folder, several files each by itself, or the rows of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlmcompress.cli.common import progress, quiet, tell
from vlmcompress.cli.progress_bar import Advance
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import at_home, check_output
from vlmcompress.files.records import SUFFIXES

if TYPE_CHECKING:
    from vlmcompress.asking.many import ManyAsker
    from vlmcompress.asking.questions import Question
    from vlmcompress.asking.results import Results
    from vlmcompress.asking.setting import Setting
    from vlmcompress.cli.ask.media import MediaArguments

BATCH = 8
"""Questions in a batch where nobody says otherwise."""


@dataclass(frozen=True)
class ManyArguments:
    """What the command line says beside media, question and setting."""

    out: Path | None
    resume: bool
    batch: int
    model: str | None
    device: str | None
    dtype: str | None
    max_new_tokens: int


def is_many(words: Sequence[str], each: bool) -> bool:
    """Whether the words of a command line name more than one prompt."""
    return each or any(_holds_many(word) for word in words)


def check_data_file(words: Sequence[str]) -> None:
    """Raise where a word is the name of a file of questions that is not there."""
    from vlmcompress.cli.ask.media import is_there

    for word in words:
        name = Path(word)
        if name.suffix.lower() in SUFFIXES and len(word.split()) == 1 and not is_there(word):
            raise VLMCompressError(f"file of questions {word!r} does not exist")


def ask_many(media: MediaArguments, setting: Setting, given: ManyArguments) -> None:
    """Check everything, then answer window by window.

    Raises:
        VLMCompressError: what is wrong; rows are checked before a model is loaded.
        typer.Exit: with 1 where some questions could not be answered.
    """
    if given.out is not None:
        check_output(given.out, frozenset(SUFFIXES))
        if given.out.exists() and not given.resume:
            raise VLMCompressError(
                f"{str(given.out)!r} exists: go on with --resume, or give another --out"
            )
    elif given.resume:
        raise VLMCompressError("--resume goes on with the file of --out, which is not given")
    from vlmcompress.cli.ask.media import check_for_videos, default_model

    questions = _questions(media)
    count, has_video = 0, False
    for one in questions():
        count, has_video = count + 1, has_video or one.has_video
    if not count:
        where = ", ".join(map(repr, filter(_holds_many, media.words)))
        raise VLMCompressError(
            f"there is nothing to ask about in {where}: no row, or no picture and no video"
        )
    check_for_videos(media, has_video)
    model = given.model if given.model is not None else default_model(has_video)

    from vlmcompress.models.names import resolve

    resolve(model)
    with quiet():
        failed = _answer(questions, count, model, setting, given, media)
    if failed:
        where = "" if given.out is None else f" in {given.out}"
        typer.echo(f"{failed} of {count} rows have an error{where}", err=True)
        raise typer.Exit(1)


def _answer(
    questions: Callable[[], Iterator[Question]],
    count: int,
    model: str,
    setting: Setting,
    given: ManyArguments,
    media: MediaArguments,
) -> int:
    """Answer what is not answered yet; gives how many of these failed."""
    from vlmcompress.asking.asker import reason_of
    from vlmcompress.asking.many import ManyAsker
    from vlmcompress.asking.results import Results, run_of
    from vlmcompress.models import loading

    asking: dict[str, Any] = {
        "batch": given.batch,
        "max_new_tokens": given.max_new_tokens,
        "frames": media.frames,
        "fps": media.fps,
    }
    run = run_of(model, setting, dtype=given.dtype, **asking)
    window = ManyAsker.window_of(given.batch)
    out = None if given.out is None else Results(given.out)
    done = 0
    if out is not None and given.out is not None and given.out.exists():
        done = out.resume(questions(), run, window)
        if done == count:
            tell([f"all {count} questions are answered in {given.out}"])
            return 0
    with progress(f"loading {model}"):
        loaded, processor = loading.load(model, device=given.device, dtype=given.dtype)
        reason = reason_of(loaded, processor, setting)
        asker = ManyAsker(loaded, processor, setting, **asking)
    tell([] if reason is None else [reason])
    if out is not None and not done and given.out is not None and not given.out.exists():
        out.begin()
    try:
        return _write(asker, islice(questions(), done, None), run, out, (done, count))
    except KeyboardInterrupt:
        if given.out is not None:
            tell([f"stopped: the same command with --resume goes on in {given.out}"])
        raise


def _write(
    asker: ManyAsker,
    questions: Iterator[Question],
    run: dict[str, Any],
    out: Results | None,
    steps: tuple[int, int],
) -> int:
    from vlmcompress.asking.results import as_lines, row_of

    failed, (done, count) = 0, steps
    with Advance(count, done=done) as advance:
        for window in asker.answers(questions):
            rows = [row_of(question, found, run) for question, found in window]
            failed += sum("error" in row for row in rows)
            if out is None:
                sys.stdout.write(as_lines(rows))
                sys.stdout.flush()
            else:
                out.append(rows)
            done += len(rows)
            advance(len(rows), f"{done} of {count} answered")
    return failed


def _questions(media: MediaArguments) -> Callable[[], Iterator[Question]]:
    """What gives all questions, as often as it is called; a file is read anew each time."""
    from vlmcompress.asking.questions import in_folder, of_file, of_files
    from vlmcompress.cli.ask.media import find_question, is_there
    from vlmcompress.files.untrusted import check_file_name

    words = [*media.words, *media.images, *media.videos]
    data = [at_home(word) for word in words if Path(word).suffix.lower() in SUFFIXES]
    if data:
        rest = [word for word in words if Path(word).suffix.lower() not in SUFFIXES]
        if len(data) > 1 or len(rest) > 1:
            raise VLMCompressError(
                f"give one {' or '.join(SUFFIXES)} file, and perhaps a question for rows that "
                "have none"
            )
        if rest and is_there(rest[0]):
            raise VLMCompressError(
                f"{rest[0]!r} stands beside a data file, which names its pictures itself"
            )
        if rest and media.question is not None:
            raise VLMCompressError(f"{rest[0]!r} stands beside a data file and --question")
        question = rest[0] if rest else media.question
        return lambda: of_file(data[0], question)
    rest, question = find_question(media)
    files: list[Path] = []
    for word in [*rest, *media.images, *media.videos]:
        check_file_name(word)
        path = at_home(word)
        if path.is_dir():
            found, others = in_folder(path)
            if others:
                tell([f"{others} files in {path} are neither pictures nor videos"])
            files += found
        else:
            files.append(path)
    return lambda: of_files(files, question)


def _holds_many(word: str) -> bool:
    if not word:  # of a variable that was not set: no folder, and not this one
        return False
    try:
        path = at_home(word)
        return path.is_dir() or (path.suffix.lower() in SUFFIXES and path.is_file())
    except (OSError, ValueError):
        return False
