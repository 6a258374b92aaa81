"""`vlmcompress demo`: a page to play with."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcompress import defaults
from vlmcompress.cli import complete
from vlmcompress.cli.common import one_line_errors, progress, quiet
from vlmcompress.cli.options import Device, Dtype, MaxMemory, Profile, Quiet

Model = Annotated[
    str,
    typer.Option(
        autocompletion=complete.models, help="A built-in model, a folder or a Hugging Face id."
    ),
]
Host = Annotated[
    str,
    typer.Option(
        help=f"Address to serve at. Others than {defaults.DEMO_HOST} let other machines in."
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]


@one_line_errors
def demo(
    model: Model = defaults.VIDEO_MODEL,
    host: Host = defaults.DEMO_HOST,
    port: Port = defaults.DEMO_PORT,
    device: Device = None,
    dtype: Dtype = None,
    max_memory: MaxMemory = None,
    profile: Profile = None,
    quietly: Quiet = False,
) -> None:
    """Open a page where a picture or a clip is asked about, with and without methods.

    \b
    Examples:
      vlmcompress demo
      vlmcompress demo --model tiny-llava --port 8000
      vlmcompress demo --model tiny-llava --profile mine.json

    Needs the extra: pip install 'vlmcompress[demo]'. Ctrl-C ends it.
    """
    from vlmcompress.asking.setting import setting_of
    from vlmcompress.demo.launch import check_gradio, launch
    from vlmcompress.models.names import resolve

    check_gradio()
    resolve(model)
    setting_of(max_memory=max_memory, profile=profile)
    with quiet():
        with progress(f"loading {model}"):
            from vlmcompress.demo.answers import DemoModel
            from vlmcompress.models import loading

            loaded = DemoModel(
                *loading.load(model, device=device, dtype=dtype), model, max_memory, profile
            )
        blocks = launch(loaded, host, port, wait=False)
        typer.echo(f"serving {model} at {blocks.local_url} (Ctrl-C ends it)")
        blocks.block_thread()
