"""The command line: `vlmcompress ask`, `chat`, `ls`, `show`, `check`, `calibrate`, ...

Only typer is imported here and in the modules of the commands; torch and transformers come when a
command runs.
"""

from __future__ import annotations

import sys
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
app.command()(ask)
app.command()(chat)
app.command()(ls)
app.command()(show)
app.command()(demo)
app.command()(check)
app.command()(kernels)
app.command()(calibrate)
app.command()(tune)
app.command()(profile)
app.command("eval")(evaluate)
app.command()(serve)


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
        typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
