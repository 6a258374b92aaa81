"""The command line: `vlmcompress ask`, `chat`, `ls`, `show`, `check`, `calibrate`, ...

Only typer is imported here and in the modules of the commands; torch and transformers come when a
command runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vlmcompress.cli.ask import ask
from vlmcompress.cli.calibrate import calibrate
from vlmcompress.cli.chat import chat
from vlmcompress.cli.check import check
from vlmcompress.cli.demo import demo
from vlmcompress.cli.evaluate import evaluate
from vlmcompress.cli.kernels import kernels
from vlmcompress.cli.ls import ls, show
from vlmcompress.cli.profile import profile
from vlmcompress.cli.serve import serve
from vlmcompress.cli.tune import tune
from vlmcompress.version import __version__

# click's class, wherever the installed typer keeps click.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., Any], name: str | None = None) -> None:
    """A command, under the name of its function or another.

    The list of commands shows the first paragraph of its docstring whole: left to itself click cuts
    it after 45 characters, whatever the width of the terminal.
    """
    summary = inspect.cleandoc(command.__doc__ or "").split("\n\n")[0]
    app.command(name, short_help=" ".join(summary.split()))(command)


for _command in (ask, chat, ls, show, demo, check, kernels, calibrate, tune, profile):
    _add(_command)
_add(evaluate, "eval")
_add(serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlmcompress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Ask vision-language models about images on fewer visual tokens, without training."""


def main() -> None:
    """Entry point of the `vlmcompress` script."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except _UsageError as error:
        # Wrong usage reads like every other mistake: one line.
        # "Value error, " is pydantic's, which checks choices in some releases of typer.
        said = " ".join(error.format_message().split()).replace(": Value error, ", ": ")
        typer.echo(f"error: {said}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
