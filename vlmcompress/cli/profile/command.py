"""`vlmcompress profile`: where the time goes, and how much of it a method saves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmcompress import defaults
from vlmcompress.cli import complete
from vlmcompress.cli.common import check_plot, one_line_errors, quiet
from vlmcompress.cli.options import (
    Device,
    Dtype,
    Fps,
    Frames,
    ImageFiles,
    MaxMemory,
    ModelName,
    Profile,
    Quiet,
    VideoFiles,
    path_option,
)
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import check_output, whole_file

if TYPE_CHECKING:
    from vlmcompress.profiler.measure import Profile as Measured


class Attention(str, Enum):
    """Attention implementations of transformers."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]...", help="Images and videos. Default: a built-in picture."),
]
Question = Annotated[
    str, typer.Option("--question", "-q", help="The question about them; it is not answered.")
]
Methods = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.method_lists,
        help='Separated by commas, each as in `ask`: "divprune,divprune+fastv(k=3),fastv(k=1)". '
        f"Default: {defaults.METHOD}, or what the --profile takes.",
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option(help=f'One budget for all methods, as in `ask`. Default: "{defaults.BUDGET}".'),
]
BudgetTexts = Annotated[str | None, typer.Option(help="Several, separated by commas: 64,128,25%.")]
RandomWeights = Annotated[
    str | None,
    typer.Option(
        help="Instead of --model and files: the shape of a published model with random weights "
        "and a random image. llava-1.5-7b, llava-next-7b, llava-onevision-0.5b, qwen2.5-vl-7b, "
        "qwen3-vl-4b or internvl3-2b."
    ),
]
Layers = Annotated[
    int | None, typer.Option(min=1, help="With --random-weights: decoder layers, if not all.")
]
EncoderLayers = Annotated[
    int | None, typer.Option(min=1, help="With --random-weights: ViT layers, if not all.")
]
VisualTokens = Annotated[
    int | None, typer.Option(min=1, help="With --random-weights: visual tokens of the image.")
]
TextTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"With --random-weights: words of the prompt. Default: {defaults.PROFILE_WORDS}.",
    ),
]
OutputTokens = Annotated[int, typer.Option(min=1, help="Tokens of every answer, no fewer.")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed runs of each setting, in turn.")]
Batch = Annotated[int, typer.Option(min=1, help="Rows: the same prompt so many times.")]
Attn = Annotated[Attention, typer.Option(help="Attention implementation.")]
Json = Annotated[
    Path | None,
    path_option(
        "--json",
        help="Write one JSON document to this file; - prints it and nothing else.",
    ),
]
Plot = Annotated[
    Path | None,
    path_option(help="Draw the times to this .png, .pdf or .svg file. Needs matplotlib."),
]


@one_line_errors
def profile(
    files: Files = None,
    image: ImageFiles = None,
    video: VideoFiles = None,
    frames: Frames = None,
    fps: Fps = None,
    question: Question = "what color is the circle ?",
    method: Methods = None,
    budget: BudgetText = None,
    budgets: BudgetTexts = None,
    model: ModelName = None,
    random_weights: RandomWeights = None,
    layers: Layers = None,
    encoder_layers: EncoderLayers = None,
    visual_tokens: VisualTokens = None,
    text_tokens: TextTokens = None,
    output_tokens: OutputTokens = 8,
    rounds: Rounds = 10,
    batch: Batch = 1,
    device: Device = None,
    dtype: Dtype = None,
    max_memory: MaxMemory = None,
    profile: Profile = None,
    attn: Attn = Attention.sdpa,
    as_json: Json = None,
    plot: Plot = None,
    quietly: Quiet = False,
) -> None:
    """Measure where the time goes: the full model, methods, and no visual token at all, in turn.

    \b
    achieved    share of the time between the full model and no visual tokens that is saved
    predicted   the same of operations: what the tokens of the method's own plan allow
    of bound    achieved / predicted
    overhead    the selection, as a share of the full model's prefill
    break-even  visual tokens of an image from which on the method saves time

    \b
    Examples:
      vlmcompress profile --model tiny-llava --method divprune,fastv,pyramiddrop --budget 72
      vlmcompress profile street.jpg --budgets 64,128,25% --plot times.png
      vlmcompress profile street.jpg --profile mine.json --budgets 25%,12.5%
      vlmcompress profile --random-weights llava-1.5-7b --layers 4 --budgets 64,128,192

    Bad input ends with exit code 2 and one line on stderr.
    """
    from vlmcompress.cli.profile.run import (
        RandomShape,
        ask_for,
        measure,
        random_prompt,
        sample_prompt,
        taken,
    )

    own = {
        "--layers": layers,
        "--encoder-layers": encoder_layers,
        "--visual-tokens": visual_tokens,
        "--text-tokens": text_tokens,
    }
    settings = ask_for(method, budget, budgets, profile, max_memory)
    _check_outputs(as_json, plot)
    with quiet():
        if random_weights is None:
            media = (files, image, video, question, frames, fps)
            prompt = sample_prompt(media, own, model, device, dtype, attn.value, batch)
        else:
            given = [model, files, image, video, frames, fps]
            shape = RandomShape(random_weights, layers, encoder_layers, visual_tokens, text_tokens)
            prompt = random_prompt(shape, given, device, dtype, attn.value, batch)
        settings = taken(settings, profile, prompt.model)
        found = measure(prompt, settings, output_tokens, rounds, max_memory)
    _write(found, as_json, plot)


def _check_outputs(document: Path | None, plot: Path | None) -> None:
    if document is not None and str(document) != "-":
        check_output(document, frozenset({".json"}))
    check_plot(plot)


def _write(found: Measured, document: Path | None, plot: Path | None) -> None:
    """Print the result first: a file that cannot be written costs nothing but itself."""
    import json

    from vlmcompress.cli.profile.output import show

    text = json.dumps(found.to_dict(), indent=1)
    if str(document) == "-":
        typer.echo(text)
    else:
        show(found)
    errors: list[VLMCompressError] = []
    if document is not None and str(document) != "-":
        with _noted(errors), whole_file(document) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
    if plot is not None:
        from vlmcompress.profiler.plot import draw

        with _noted(errors), whole_file(plot) as draft:
            draw(found, draft)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _noted(errors: list[VLMCompressError]) -> Iterator[None]:
    """Put an error aside until the other files are written."""
    try:
        yield
    except VLMCompressError as error:
        errors.append(error)
