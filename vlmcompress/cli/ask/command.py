"""`vlmcompress ask`: a question about images and videos, answered on fewer visual tokens."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcompress import defaults
from vlmcompress.cli import complete
from vlmcompress.cli.ask.many import BATCH, ManyArguments, ask_many, check_data_file, is_many
from vlmcompress.cli.common import one_line_errors, progress, quiet, tell
from vlmcompress.cli.options import (
    Decoder,
    Device,
    Dtype,
    Fps,
    Frames,
    ImageFiles,
    MaxMemory,
    ModelName,
    Options,
    Profile,
    Quiet,
    VideoFiles,
    path_option,
)
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import whole_file

if TYPE_CHECKING:
    from vlmcompress.asking.answer import Answer
    from vlmcompress.asking.asker import Asker
    from vlmcompress.cli.ask.request import Request


_ROUNDS = 3


class Positions(str, Enum):
    """Position ids of the kept tokens."""

    keep = "keep"
    renumber = "renumber"


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE]... [QUESTION]",
        help="Images and videos, then the question, or - to read it from stdin. With --question "
        "all of them are files.",
    ),
]
Question = Annotated[
    str | None, typer.Option("--question", "-q", help="The question; - reads it from stdin.")
]
MethodSpec = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.methods,
        help="See `vlmcompress ls methods`; methods are joined with +, as in "
        '"divprune+fastv(k=3)"; "auto" takes the most accurate. '
        f"Default: {defaults.METHOD}.",
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        help="Visual tokens per image or video, mean over decoder layers: a count (64), a share "
        '(25%), or either for each frame ("16 per frame"). Or the cost of the first token: '
        '"0.4 flops" of the full model\'s, or "120 ms". '
        f"Default: {defaults.BUDGET} without --method; with it the method's own setting, or "
        f"{defaults.BUDGET} if it has none."
    ),
]
Length = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
PositionRule = Annotated[
    Positions, typer.Option(help="Whether kept tokens keep their position ids.")
]
Compare = Annotated[bool, typer.Option("--compare", help="Answer on all tokens, too; show both.")]
Repeat = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --compare: timed rounds after one warm-up; that of the median total is shown. "
        f"Default: {_ROUNDS}.",
    ),
]
Overlay = Annotated[
    Path | None,
    path_option(help="Write the pictures with dropped patches dimmed to this file."),
]
Each = Annotated[
    bool, typer.Option("--each", help="Ask about each file by itself, not about all at once.")
]
Out = Annotated[
    Path | None,
    path_option(
        help="With --each, a folder or a file of questions: write the answers to this .jsonl or "
        ".csv file. Default: JSON lines on stdout."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the file of --out.")]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help=f"Pictures of one size are asked in batches. Default: {BATCH}."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@one_line_errors
def ask(
    given: Words = None,
    image: ImageFiles = None,
    video: VideoFiles = None,
    frames: Frames = None,
    fps: Fps = None,
    decoder: Decoder = None,
    question: Question = None,
    method: MethodSpec = None,
    budget: BudgetText = None,
    option: Options = None,
    model: ModelName = None,
    max_new_tokens: Length = defaults.ANSWER_TOKENS,
    device: Device = None,
    dtype: Dtype = None,
    positions: PositionRule = Positions.keep,
    max_memory: MaxMemory = None,
    profile: Profile = None,
    compare: Compare = False,
    repeat: Repeat = None,
    overlay: Overlay = None,
    as_json: Json = False,
    each: Each = False,
    out: Out = None,
    resume: Resume = False,
    batch: Batch = None,
    quietly: Quiet = False,
) -> None:
    """Ask a model a question about images and videos, on fewer visual tokens.

    \b
    Examples:
      vlmcompress ask street.jpg "what is on the sign?"
      vlmcompress ask --image street.jpg "what is on the sign?" --method divprune --budget 64
      vlmcompress ask a.png b.png "what differs?" --method "divprune+fastv(k=3)" --budget 40%
      vlmcompress ask street.jpg "what is on the sign?" --compare --overlay kept.png
      vlmcompress ask --video clip.mp4 "what happens?" --frames 16 --budget "16 per frame"
      vlmcompress ask street.jpg "what is on the sign?" --model llava-hf/llava-1.5-7b-hf --json
      vlmcompress ask photos "what is this?" --out answers.csv
      vlmcompress ask questions.jsonl --out answers.jsonl --resume

    A folder, a .jsonl or .csv file with the fields image (or images, or video) and question, and
    several files with --each are asked about one by one.

    Bad input ends with exit code 2 and one line on stderr; rows that could not be answered end with
    1.
    """
    from vlmcompress.cli.ask.media import MediaArguments, name_media
    from vlmcompress.cli.ask.request import check, setting

    if repeat is not None and not compare:
        raise VLMCompressError("--repeat is for --compare, which is not given")
    media = MediaArguments(given or [], image or [], video or [], question, frames, fps, decoder)
    many = ManyArguments(out, resume, batch or BATCH, model, device, dtype, max_new_tokens)
    check_data_file(media.words)
    if is_many(media.words, each):
        _no_picture_options(compare, overlay, as_json, decoder)
        found = setting(method, budget, option or [], positions.value, max_memory, profile)
        ask_many(media, found, many)
        return
    if out is not None or resume or batch is not None:
        name_media(media)  # a folder that is not there is said first
        raise VLMCompressError(
            "--out, --resume and --batch are for --each, a folder, or a .jsonl or .csv file"
        )
    request = check(
        media,
        model,
        method,
        budget,
        option or [],
        overlay,
        positions.value,
        max_memory,
        profile,
    )
    tell(request.notes)
    with quiet():
        asker = _load(request, device, dtype, max_new_tokens)
        with progress("answering"):
            runs = _run(asker, request, (repeat or _ROUNDS) if compare else None)
    if overlay is not None:
        with whole_file(overlay) as draft:
            runs[-1].overlay(model=request.model).save(draft)
    from vlmcompress.cli.ask.output import as_document, as_text

    typer.echo(as_document(request, asker, runs) if as_json else as_text(request, runs))


def _no_picture_options(
    compare: bool, overlay: Path | None, as_json: bool, decoder: str | None
) -> None:
    """Raise a VLMCompressError about options that are for one prompt."""
    for name, given in (
        ("--compare", compare),
        ("--overlay", overlay is not None),
        ("--json", as_json),
        ("--decoder", decoder is not None),
    ):
        if given:
            raise VLMCompressError(f"{name} is for one question, not for many files")


def _load(request: Request, device: str | None, dtype: str | None, max_new_tokens: int) -> Asker:
    with progress(f"loading {request.model}"):
        from vlmcompress.asking.asker import Asker
        from vlmcompress.models.loading import load

        model, processor = load(request.model, device=device, dtype=dtype)
        return Asker(model, processor, request.media, request.question, max_new_tokens)


def _run(asker: Asker, request: Request, rounds: int | None) -> list[Answer]:
    """The reduced run, or the full and the reduced one."""
    if rounds is None:
        return [asker.run(request.setting)]
    return asker.compare([request.setting.whole, request.setting], rounds)
