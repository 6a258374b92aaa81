"""`vlmcompress calibrate`: tables measured on a model, for the methods that take one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmcompress import defaults
from vlmcompress.cli.common import one_line_errors, progress, quiet
from vlmcompress.cli.options import Device, Dtype, Quiet, path_option
from vlmcompress.cli.progress_bar import Advance
from vlmcompress.files import check_output, whole_file

if TYPE_CHECKING:
    from vlmcompress.calibrate import CalibrationQuestion


class Calibration(str, Enum):
    """Things that can be calibrated."""

    adaptinfer = "adaptinfer"
    gsearch = "gsearch"
    embedlens = "embedlens"


_USED_BY = {
    Calibration.adaptinfer: "adaptinfer",
    Calibration.gsearch: "psigmoid",
    Calibration.embedlens: "embedlens",
}


Kind = Annotated[Calibration, typer.Argument(help="What to calibrate.", show_default=False)]
Out = Annotated[Path, path_option(help="The JSON file to write.", show_default=False)]
ModelName = Annotated[str, typer.Option(help="A built-in model, a folder or a Hugging Face id.")]
Data = Annotated[
    Path | None,
    path_option(
        help='JSONL file with {"image": FILE, "question": TEXT} a line, images relative to it. '
        "Default for built-in models: questions that they were trained on."
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="Questions, at most.")]
Share = Annotated[
    str | None,
    typer.Option(
        help="Mean share of the visual tokens that a schedule keeps, such as 50%. Default: "
        "gsearch: what it found; adaptinfer: halfway between all and the least possible."
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="gsearch: share of the questions whose next token may change. "
        f"Default: {defaults.CALIBRATE_TOLERANCE}."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Which of the built-in questions; not with --data.")]
Batch = Annotated[int, typer.Option(min=1, help="Questions at a time.")]


@one_line_errors
def calibrate(
    what: Kind,
    out: Out,
    model: ModelName = defaults.MODEL,
    data: Data = None,
    limit: Limit = 200,
    budget: Share = None,
    tolerance: Tolerance = None,
    seed: Seed = 0,
    batch: Batch = 8,
    device: Device = None,
    dtype: Dtype = None,
    quietly: Quiet = False,
) -> None:
    """Measure on a model what a method has to know about it; write a table.

    \b
    adaptinfer  where and how many tokens are dropped: a schedule for adaptinfer
    gsearch     how few tokens each layer needs: a schedule for psigmoid
    embedlens   the words that tokens without content lie next to: for embedlens

    \b
    Examples:
      vlmcompress calibrate adaptinfer --out s.json
      vlmcompress ask street.jpg "what ?" --method "adaptinfer(table='s.json')" --budget 50%
      vlmcompress calibrate gsearch --budget 50% --out g.json
      vlmcompress ask street.jpg "what ?" --method "psigmoid(table='g.json')"
      vlmcompress calibrate gsearch --model my/vlm --data asked.jsonl --out g.json

    Bad input ends with exit code 2 and one line on stderr.
    """
    check_output(out, frozenset({".json"}))
    settings = _settings(what, budget, tolerance) | {"batch": batch}
    source = str(data) if data else f"training questions from seed {seed}"
    with quiet():
        asked = _asked(model, data, limit, seed, budget)
        found = _measure(what, model, asked, source, device, dtype, settings)
    with whole_file(out) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{out}: {_said(found)}; use it with --method \"{_USED_BY[what]}(table='{out}')\"")


def _settings(what: Calibration, budget: str | None, tolerance: float | None) -> dict[str, Any]:
    """What this kind of calibration is told; what it does not know is refused."""
    from vlmcompress.errors import VLMCompressError

    if tolerance is not None and what is not Calibration.gsearch:
        raise VLMCompressError(f"--tolerance is for gsearch, not for {what.value}")
    if budget is not None and what is Calibration.embedlens:
        raise VLMCompressError("--budget is for schedules, not for embedlens")
    settings: dict[str, Any] = {} if what is Calibration.embedlens else {"budget": budget}
    return settings if tolerance is None else settings | {"tolerance": tolerance}


def _said(found: dict[str, Any]) -> str:
    if "shares" not in found:
        return f"{len(found['sink'])} sink words and {len(found['dead'])} dead words"
    shares = found["shares"]
    kept = sum(shares) / len(shares)
    return f"{kept:.1%} of the visual tokens on average over {len(shares)} layers"


def _asked(
    model: str, data: Path | None, limit: int, seed: int, budget: str | None
) -> list[CalibrationQuestion]:
    """The questions, and everything checked that can be without the model."""
    from vlmcompress.calibrate import read_questions, training_questions
    from vlmcompress.calibrate.document import share_of
    from vlmcompress.errors import VLMCompressError
    from vlmcompress.eval.tasks.from_worlds import world_of
    from vlmcompress.models.names import BUILT_IN, resolve

    share_of(budget)
    resolve(model)
    if data is not None:
        if seed:
            raise VLMCompressError("--seed is for the built-in questions, but --data is given")
        return read_questions(data, limit)
    if model not in BUILT_IN:
        raise VLMCompressError(
            f"no questions for {model!r}: give --data with a JSONL file; only "
            f"{' and '.join(BUILT_IN)} have questions of their own"
        )
    with progress("drawing pictures"):
        return training_questions(limit, seed, world_of(model))


@contextlib.contextmanager
def _counted(what: Calibration, model: Any, questions: int, batch: int) -> Iterator[None]:
    """Show how far it is by counting calls of the model; of how many is known at most."""
    from vlmcompress.calibrate.adaptinfer import RATIOS
    from vlmcompress.calibrate.document import depth
    from vlmcompress.calibrate.gsearch import STEPS

    rounds = {
        Calibration.embedlens: 1,
        # The attention, the answers on all tokens, and the shares at two sets of layers.
        Calibration.adaptinfer: 2 + 2 * len(RATIOS),
        # The answers on all tokens, and a bisection for each layer but the first.
        Calibration.gsearch: 1 + (depth(model) - 1) * (STEPS.bit_length() - 1),
    }[what]
    with Advance(-(-questions // batch) * rounds) as advance:
        hook = model.register_forward_hook(lambda *call: advance(1, f"{questions} questions"))
        try:
            yield
        finally:
            hook.remove()


def _measure(
    what: Calibration,
    model: str,
    asked: list[CalibrationQuestion],
    source: str,
    device: str | None,
    dtype: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What the file is to hold."""
    from vlmcompress.calibrate import calibrate_adaptinfer, calibrate_gsearch
    from vlmcompress.calibrate.embedlens import calibrate_embedlens
    from vlmcompress.calibrate.questions import batches
    from vlmcompress.models import loading

    with progress(f"loading {model}"):
        loaded, processor = loading.load(model, device=device, dtype=dtype)
    with _counted(what, loaded, len(asked), settings["batch"]):
        if what is Calibration.embedlens:
            origin = f"calibrated on {model} with {len(asked)} pictures: {source}"
            inputs = batches(loaded, processor, asked, settings["batch"])
            return dict(vars(calibrate_embedlens(loaded, inputs, origin)))
        run = calibrate_adaptinfer if what is Calibration.adaptinfer else calibrate_gsearch
        found = run(loaded, processor, asked, name=model, **settings)
    found["measured"]["data"] = source
    return found
