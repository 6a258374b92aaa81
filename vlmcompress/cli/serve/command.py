"""`vlmcompress serve`: vLLM with fewer visual tokens."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmcompress.cli.common import one_line_errors, tell
from vlmcompress.cli.options import Profile
from vlmcompress.errors import VLMCompressError

Model = Annotated[
    str | None,
    typer.Argument(help="A built-in model, a folder or a Hugging Face id.", show_default=False),
]
Arguments = Annotated[
    list[str] | None, typer.Argument(help="Arguments of `vllm serve`, behind --.", metavar="[ARGS]")
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help='A method spec; "full" prunes nothing but where a request asks for it.',
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", help='Tokens per image: 64, "25%", "16 per frame", "0.4 flops".'
    ),
]
Positions = Annotated[
    str, typer.Option(metavar="keep|renumber", help="Position ids of the tokens that are kept.")
]
Show = Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")]
Check = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ask a running server with and without pruning, and exit."),
]


@one_line_errors
def serve(
    model: Model = None,
    arguments: Arguments = None,
    method: Method = None,
    budget: Budget = None,
    positions: Positions = "keep",
    show: Show = False,
    check: Check = None,
    profile: Profile = None,
) -> None:
    """Serve a model with vLLM, on fewer visual tokens.

    Runs `vllm serve` with the settings of the plug-in; everything behind -- goes to vLLM. A request
    may change method and budget where vLLM is given --trust-request-mm-kwargs.

    \b
    Examples:
      vlmcompress serve tiny-llava --method divprune --budget 25% -- --port 8000
      vlmcompress serve Qwen/Qwen2.5-VL-3B-Instruct -m visionzip -b 25% --print
      vlmcompress serve tiny-llava --profile mine.json --budget 25% --print
      vlmcompress serve --check http://localhost:8000

    Exit code 2: bad input; else that of vLLM.
    """
    if check is not None:
        # Of `--print` nothing is to be seen: a check starts no server.
        given = (model, arguments or None, method, budget, profile, positions)
        if given != (*[None] * 5, "keep"):
            raise VLMCompressError(
                "--check asks a server that is running: give it no model, settings or arguments"
            )
        from vlmcompress.cli.serve.check import asked

        typer.echo(asked(check))
        return
    if model is None or (method is None and profile is None):
        raise VLMCompressError("give a model and --method or --profile, or --check URL")
    where, overrides = _settings(model, method, budget, positions, profile)
    command = ["serve", where, "--hf-overrides", json.dumps(overrides), *(arguments or ())]
    if show:
        typer.echo(shlex.join(["vllm", *command]))
        return
    if importlib.util.find_spec("vllm") is None:
        raise VLMCompressError("vLLM is not installed: pip install 'vlmcompress[vllm]'")
    # As a module: the script `vllm` need not be on the path of whoever calls this one.
    python = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    os.execv(python[0], [*python, *command])


def _settings(
    model: str,
    method: str | None,
    budget: str | None,
    positions: str,
    profile: Path | None,
) -> tuple[str, dict[str, Any]]:
    """Where the model is, and what overrides its configuration."""
    from types import SimpleNamespace

    from vlmcompress.budget.budget import Budget
    from vlmcompress.defaults import AUTO
    from vlmcompress.models.formats import read_config
    from vlmcompress.models.names import resolve
    from vlmcompress.serving.architectures import KEY, hf_overrides
    from vlmcompress.serving.counts import method_of, plan
    from vlmcompress.serving.served_profile import served_method
    from vlmcompress.serving.settings import Settings, refuse_time
    from vlmcompress.tokens import Grid, Layout

    where = resolve(model)
    config = read_config(where, {})
    if not config:
        raise VLMCompressError(f"cannot read the configuration of {model!r}")
    if profile is not None:
        method, said = served_method(profile, budget, config, method)
        tell([said])
    assert method is not None
    overrides = hf_overrides(config.get("architectures") or [], method, budget, positions)
    # What is malformed, and what no picture could be served with, fails here, not in vLLM.
    settings = Settings.of_server(SimpleNamespace(**{KEY: overrides[KEY]}))
    asked = None if settings.budget is None else Budget.parse(settings.budget)
    refuse_time(asked)
    if method != AUTO:
        method_of(method)
        if asked is None or not asked.is_cost:
            plan(settings, Layout.of(Grid(1, 24, 24)))
    return where, overrides
