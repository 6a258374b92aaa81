"""`vlmcompress tune`: the method for a model and a user's pictures, found without labels."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmcompress import defaults
from vlmcompress.cli import complete
from vlmcompress.cli.common import (
    between_commas,
    check_plot,
    one_line_errors,
    progress,
    quiet,
    tell,
)
from vlmcompress.cli.options import Device, Dtype, Fps, Frames, ModelName, Quiet, path_option
from vlmcompress.cli.progress_bar import Advance
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import check_output

_SHOWN = 8
"""Candidates in a table."""


class Goal(str, Enum):
    """What is looked for."""

    accuracy = "accuracy"
    time = "time"
    pareto = "pareto"


Media = Annotated[Path | None, path_option(metavar="DIR", help="A folder of pictures and clips.")]
Questions = Annotated[
    Path | None,
    path_option(
        help="A .jsonl or .csv file as `ask` takes it; rows without a picture are asked about the "
        "files of --media. Default: general questions."
    ),
]
Budgets = Annotated[
    str,
    typer.Option(help="Counts or shares of the visual tokens, separated by commas."),
]
Out = Annotated[Path, path_option(help="The profile to write, a .json file.", show_default=False)]
GoalName = Annotated[
    Goal,
    typer.Option(
        help="accuracy: nearest to the whole model. time: the fastest that is not significantly "
        "worse than that. pareto: as accuracy, and everything stays in the race that is faster."
    ),
]
Minutes = Annotated[float | None, typer.Option(help="End after so many, with what is known then.")]
QuestionBlind = Annotated[
    bool,
    typer.Option(
        "--question-blind",
        help="Only methods that keep the same whatever is asked: one cache serves many questions.",
    ),
]
Specs = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.method_lists,
        help="Methods to race, separated by commas. Default: all, with options and compositions.",
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Questions, at most.")]
Seed = Annotated[int, typer.Option(min=0, help="Of their order.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions at a time.")]
Length = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a race that was stopped.")]
Plot = Annotated[
    Path | None, path_option(help="Write a picture: agreement against time, a panel a budget.")
]


@one_line_errors
def tune(
    out: Out,
    model: ModelName = None,
    media: Media = None,
    questions: Questions = None,
    budget: Budgets = defaults.EVAL_BUDGETS,
    objective: GoalName = Goal.accuracy,
    minutes: Minutes = None,
    question_blind: QuestionBlind = False,
    candidates: Specs = None,
    samples: Count = defaults.TUNE_SAMPLES,
    seed: Seed = 0,
    batch: BatchSize = defaults.TUNE_BATCH,
    max_new_tokens: Length = defaults.TUNE_TOKENS,
    frames: Frames = None,
    fps: Fps = None,
    device: Device = None,
    dtype: Dtype = None,
    plot: Plot = None,
    resume: Resume = False,
    quietly: Quiet = False,
) -> None:
    """Find the method for a model and your pictures, without labels; write a profile.

    The whole model's own answers are the teacher: methods race on how like it the compressed model
    is, and leave when they are significantly worse.

    \b
    Examples:
      vlmcompress tune --media photos --budget 25%,12.5% --out mine.json
      vlmcompress tune --media photos --questions asked.jsonl --objective time --out quick.json
      vlmcompress ask street.jpg "what ?" --profile mine.json --budget 25%

    Needs the extra: pip install 'vlmcompress[eval]'.
    Bad input ends with exit code 2 and one line on stderr.
    """
    check_output(out, frozenset({".json"}))
    if out.exists() and not resume:
        raise VLMCompressError(f"{str(out)!r} exists: go on with --resume, or give another --out")
    check_plot(plot)
    from vlmcompress.eval.extras import check_eval

    check_eval()
    from vlmcompress.tuning.samples import read_samples
    from vlmcompress.tuning.tune import plan_of

    plan = plan_of(
        between_commas(budget),
        None if candidates is None else between_commas(candidates),
        question_blind,
        objective=objective.value,
        batch=batch,
        longest=max_new_tokens,
        minutes=minutes,
    )
    asked = read_samples(media, questions, samples, seed, frames, fps)
    settings = {
        "seed": seed,
        "questions": "general" if questions is None else str(questions),
        "question_blind": question_blind,
    }
    with quiet():
        found = _tune(model, asked, plan, out, resume, (device, dtype), settings)
    _show(found, out)
    if plot is not None:
        from vlmcompress.files import whole_file
        from vlmcompress.tuning.plot import draw

        with whole_file(plot) as draft:
            draw(found, draft)


def _tune(
    model: str | None,
    asked: Any,
    plan: Any,
    out: Path,
    resume: bool,
    where: tuple[str | None, str | None],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Load and race; whoever stops that hears how to go on."""
    from vlmcompress.models import loading
    from vlmcompress.models.names import resolve
    from vlmcompress.tuning.tune import carry_out, folder_of

    if model is None:
        video = any(sample.kind == "video" for sample in asked)
        model = defaults.VIDEO_MODEL if video else defaults.MODEL
    resolve(model)
    with progress(f"loading {model}"):
        loaded, processor = loading.load(model, device=where[0], dtype=where[1])
    try:
        return carry_out(
            loaded,
            processor,
            asked,
            plan,
            name=model,
            out=out,
            watch=Advance,
            resume=resume,
            **settings,
        )
    except KeyboardInterrupt:
        if folder_of(out).exists():
            typer.echo(f"stopped: the same command with --resume goes on in {out}", err=True)
        raise


def _show(found: dict[str, Any], out: Path) -> None:
    """A table for each budget, and what is taken."""
    from vlmcompress.cli.tables import numbers, paragraph
    from vlmcompress.tuned import how_sure
    from vlmcompress.tuning.profile import heads, lines

    tell(f"passed over: {reason}" for reason in found["passed_over"])
    for budget, at in found["budgets"].items():
        numbers(budget, heads(), lines(at, _SHOWN))
        for spec, reason in at["unfit"].items():
            typer.echo(paragraph(f"{spec}: {reason}"))
        typer.echo(paragraph(f"{budget}: {how_sure(at)}\n"))
    if not found["complete"]:
        tell([f"time was up before all questions: --resume with more --minutes goes on in {out}"])
    typer.echo(f"{out}: use it with --profile {out}, or compress(..., 'auto', profile='{out}')")
