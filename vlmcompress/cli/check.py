"""`vlmcompress check`: the laws on the user's own model."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmcompress.cli import complete
from vlmcompress.cli.common import one_line_errors, progress, quiet, silent_libraries
from vlmcompress.cli.options import Device, Dtype, Quiet, name_option

Model = Annotated[
    str,
    typer.Argument(
        autocompletion=complete.models,
        help="A built-in model, a folder or a Hugging Face id.",
        show_default=False,
    ),
]
Picture = Annotated[
    str | None,
    name_option("--image", "-i", help="A picture. Default: a sample, where there is no video."),
]
Clip = Annotated[str | None, name_option("--video", "-v", help="A video file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@one_line_errors
def check(
    model: Model,
    image: Picture = None,
    video: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
    quietly: Quiet = False,
) -> None:
    """Prove on a model's own weights that dropping tokens changes nothing else.

    Asks the cheap laws of vlmcompress's tests: that the picture's tokens are found, that keeping
    all changes not one bit, dropping equals taking rows out of the bare model, a cache and a batch
    change nothing, and removing leaves nothing behind. What the bare model does not keep itself is
    void.

    \b
    Examples:
      vlmcompress check tiny-llava
      vlmcompress check Qwen/Qwen2.5-VL-3B-Instruct --image street.jpg --dtype float32
      vlmcompress check tiny-qwen --video clip.mp4 --json

    Exit code 0: all laws hold or are void; 1: one fails; 2: bad input.
    """
    from vlmcompress.files.untrusted import check_file_name
    from vlmcompress.media.images import read_image
    from vlmcompress.media.regular_files import check_file
    from vlmcompress.media.video import read_video
    from vlmcompress.models.names import resolve

    for file, kind in ((image, "image"), (video, "video")):
        if file is not None:
            check_file_name(file)
            check_file(file, kind)
    resolve(model)
    picture = None if image is None else read_image(image)
    with silent_libraries():
        clip = None if video is None else read_video(video)
    with quiet():
        with progress(f"loading {model}"):
            from vlmcompress.laws.check import check as checked
            from vlmcompress.models import loading

            loaded, processor = loading.load(model, device=device, dtype=dtype)
        with progress("checking"):
            report = checked(loaded, processor, picture, clip)
    typer.echo(report.to_json() if as_json else str(report))
    raise typer.Exit(0 if report.holds else 1)
