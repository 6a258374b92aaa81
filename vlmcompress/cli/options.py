"""Options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmcompress import defaults
from vlmcompress.cli import complete
from vlmcompress.cli.common import hush
from vlmcompress.files import at_home


def path_option(*names: str, metavar: str = "FILE", **described: Any) -> Any:
    """An option for a `Path`, in which `~` is the home folder also where no shell put it in."""
    return typer.Option(*names, metavar=metavar, parser=at_home, **described)


def name_option(*names: str, **described: Any) -> Any:
    """The same for the name of a file as a text, such as one that turns out to be a URL."""
    return typer.Option(*names, metavar="FILE", parser=os.path.expanduser, **described)


ImageFiles = Annotated[
    list[str] | None, name_option("--image", "-i", help="An image file; may be repeated.")
]
VideoFiles = Annotated[
    list[str] | None, name_option("--video", "-v", help="A video file; may be repeated.")
]
Frames = Annotated[
    int | None,
    typer.Option(
        help="Frames taken of each video, spread evenly from the first to the last. "
        "Default: 2 a second, but 8 to 32."
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Encode clips in pieces, so that the vision encoder takes no more than this for them: "
        "2GB, 500MiB. Default: whole clips.",
    ),
]
Fps = Annotated[float | None, typer.Option(help="Frames a second taken of each video.")]
Decoder = Annotated[
    str | None,
    typer.Option(
        metavar="auto|pyav|torchcodec|decord",
        help="What decodes videos. Default: auto, which is PyAV; the others refuse videos that "
        "they would get wrong.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the method as KEY=VALUE; may be repeated."),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.models,
        help=f"A built-in model, a folder or a Hugging Face id. Default: {defaults.MODEL}, or "
        f"{defaults.VIDEO_MODEL} where there is a video.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. Default: as the checkpoint was saved."),
]
Profile = Annotated[
    Path | None,
    path_option(
        help="What `vlmcompress tune` wrote for this model: the method is what it found, and not "
        "named."
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", callback=hush, help="No notes and no progress, only errors."),
]
