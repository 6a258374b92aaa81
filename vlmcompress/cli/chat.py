"""`vlmcompress chat`: many questions about the same pictures or clips."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcompress import defaults
from vlmcompress.cli.ask.command import BudgetText, Length, MethodSpec
from vlmcompress.cli.common import PICTURES, one_line_errors, progress, quiet, tell
from vlmcompress.cli.options import (
    Device,
    Dtype,
    Fps,
    Frames,
    MaxMemory,
    ModelName,
    Options,
    Profile,
    Quiet,
)
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import at_home, check_output, whole_file
from vlmcompress.files.untrusted import one_line, visible

if TYPE_CHECKING:
    from vlmcompress.asking.answer import Answer
    from vlmcompress.asking.chat import Chat

_ALONE = frozenset({"history", "reset", "help"})
"""Commands that take no words."""
_HELP = """/method NAME [BUDGET]  another method from the next question on
/budget BUDGET         another budget
/compare [METHOD]...   the last question once more: all tokens, this method, and others
/overlay FILE          the last answer's picture: what was kept
/history               questions and answers so far
/reset                 forget them; the pictures stay
/help                  this
/quit                  or the end of the input"""

Files = Annotated[
    list[str],
    typer.Argument(help="Images and videos that the conversation is about.", show_default=False),
]
Reselect = Annotated[
    bool,
    typer.Option(
        "--reselect",
        help="Choose tokens anew for every question, from the pictures' kept features; the encoder "
        "runs once. For methods that look at the question. Default: later turns go on from the "
        "cache of the first.",
    ),
]


@one_line_errors
def chat(
    files: Files,
    method: MethodSpec = None,
    budget: BudgetText = None,
    option: Options = None,
    reselect: Reselect = False,
    model: ModelName = None,
    frames: Frames = None,
    fps: Fps = None,
    max_new_tokens: Length = defaults.ANSWER_TOKENS,
    device: Device = None,
    dtype: Dtype = None,
    max_memory: MaxMemory = None,
    profile: Profile = None,
    quietly: Quiet = False,
) -> None:
    """Ask many questions about the same pictures or clips.

    Questions are read from the terminal, or a line each from stdin. A line that begins with a slash
    is a command: /method, /budget, /compare, /overlay, /history, /reset, /help, /quit.

    \b
    Examples:
      vlmcompress chat street.jpg --method divprune --budget 64
      vlmcompress chat street.jpg --method sparsevlm --budget 50% --reselect
      vlmcompress chat clip.mp4 --frames 64 --max-memory 500MB
      vlmcompress chat street.jpg --profile mine.json --budget 25%

    A question that is refused is told, and the conversation goes on.
    """
    from vlmcompress.cli.ask.media import MediaArguments, check_for_videos, default_model
    from vlmcompress.cli.ask.request import setting
    from vlmcompress.media.given import media_of
    from vlmcompress.media.video import Video
    from vlmcompress.models.names import resolve

    found = setting(method, budget, option or [], "keep", max_memory, profile)
    media = media_of(files, frames, fps)
    has_video = any(isinstance(one, Video) for one in media)
    check_for_videos(MediaArguments(files, [], [], None, frames, fps), has_video)
    name = model if model is not None else default_model(has_video)
    resolve(name)
    with quiet():
        with progress(f"loading {name}"):
            from vlmcompress.asking.asker import reason_of
            from vlmcompress.asking.chat import Chat
            from vlmcompress.models import loading

            loaded, processor = loading.load(name, device=device, dtype=dtype)
        reason = reason_of(loaded, processor, found)
        talk = Chat(
            loaded,
            processor,
            media,
            reselect=reselect,
            max_new_tokens=max_new_tokens,
            profile=profile,
        )
        # Options of the method may have any name, also one that is an argument of `Chat`.
        talk.setting = found
        tell([f"{name}, {talk.setting.name}; /help lists the commands", *filter(None, [reason])])
        with talk:
            _Conversation(talk, name).run()


class _Conversation:
    """Reads lines, and answers questions and commands until the input ends."""

    def __init__(self, chat: Chat, model: str) -> None:
        self._chat, self._model = chat, model
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "method": self._method,
            "budget": self._budget,
            "compare": self._compare,
            "overlay": self._overlay,
            "history": self._history,
            "reset": self._reset,
            "help": lambda words: typer.echo(_HELP),
        }

    def run(self) -> None:
        """Until /quit or the end of the input; Ctrl-C stops an answer, and without one the end."""
        while (line := _read()) is not None:
            if line in ("/quit", "/exit"):
                return
            try:
                self._do(line)
            except KeyboardInterrupt:
                tell(["stopped"])
            except VLMCompressError as error:
                typer.echo(f"error: {one_line(error)}", err=True)

    def _do(self, line: str) -> None:
        if not line.startswith("/"):
            with progress("answering"):
                found = self._chat.ask(line)
            typer.echo(visible(found.answer) or "(empty)")
            tell([_about(found)])
            return
        name, _, rest = line[1:].partition(" ")
        words = rest.split()
        if words and name in _ALONE:
            raise VLMCompressError(f"/{name} takes nothing behind it, got {rest.strip()!r}")
        if name not in self._commands:
            from vlmcompress.registry import unknown

            raise unknown("command", name, [*self._commands, "quit"])
        self._commands[name](words)

    def _method(self, words: list[str]) -> None:
        if not 1 <= len(words) <= 2:
            raise VLMCompressError("give a method and perhaps a budget: /method divprune 25%")
        self._told(self._chat.set(words[0], words[1] if len(words) > 1 else None).name)

    def _budget(self, words: list[str]) -> None:
        if not words:
            raise VLMCompressError("give a budget: /budget 25%")
        self._told(self._chat.set(budget=" ".join(words)).name)

    def _compare(self, words: list[str]) -> None:
        with progress("comparing"):
            found = self._chat.compare(words, self._chat.setting.budget if words else None)
        typer.echo(visible(str(found)))

    def _overlay(self, words: list[str]) -> None:
        if len(words) != 1:
            raise VLMCompressError("give a file to write: /overlay kept.png")
        if not self._chat.turns:
            raise VLMCompressError("nothing was asked yet, so there is nothing to draw")
        path = at_home(Path(words[0]))
        check_output(path, PICTURES)
        with whole_file(path) as draft:
            self._chat.turns[-1].overlay(model=self._model).save(draft)
        self._told(f"wrote {path}")

    def _history(self, words: list[str]) -> None:
        for number, turn in enumerate(self._chat.turns, start=1):
            typer.echo(f"{number}. {visible(turn.question)}")
            typer.echo(f"   {visible(turn.answer) or '(empty)'}   ({turn.setting.name})")

    def _reset(self, words: list[str]) -> None:
        self._chat.reset()
        self._told("nothing was asked yet")

    def _told(self, text: str) -> None:
        tell([text])


def _about(found: Answer) -> str:
    """Tokens and times of a turn in one line."""
    from vlmcompress.report.numbers import mean_text

    times = found.milliseconds
    return (
        f"{found.before} -> {found.after} tokens, mean over layers {mean_text(found.mean)}; "
        f"encoder {times['encoder']:.0f} ms, prefill {times['prefill']:.0f} ms, "
        f"total {times['total']:.0f} ms"
    )


def _read() -> str | None:
    """The next line that is not blank, without blanks at its ends; None at the end."""
    asks = sys.stdin.isatty()
    if asks:
        with contextlib.suppress(ImportError):  # it is not on every system
            import readline  # noqa: F401  (lines can be edited and recalled)
    while True:
        try:
            line = input("> " if asks else "")
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise VLMCompressError("a line of stdin is not text") from error
        if line.strip():
            return line.strip()
