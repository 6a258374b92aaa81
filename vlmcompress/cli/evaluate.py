"""`vlmcompress eval`: what a budget costs in accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmcompress import defaults
from vlmcompress.cli import complete
from vlmcompress.cli.common import between_commas, one_line_errors, progress, quiet
from vlmcompress.cli.options import (
    Device,
    Dtype,
    MaxMemory,
    Profile,
    Quiet,
    path_option,
)
from vlmcompress.cli.progress_bar import Advance
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import check_output

if TYPE_CHECKING:
    from vlmcompress.eval.run.evaluate import Evaluation, Plan

Model = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.models,
        help=f"A built-in model, a folder or a Hugging Face id. Default: {defaults.MODEL}.",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.method_lists,
        help='Separated by commas, each as in `ask`, or "all". '
        f"Default: {defaults.METHOD}. The baselines always run.",
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(help=f"Separated by commas, each as in `ask`. Default: {defaults.EVAL_BUDGETS}."),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete.tasks,
        help="Separated by commas: pictures, clips, one kind as in pictures/count, or .yaml, "
        ".jsonl, .csv and .parquet files. Default: pictures, and clips if the model takes videos.",
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        help="Questions of each task, or of some: pictures=500,clips=200. "
        f"Default: {defaults.EVAL_LIMIT} drawn ones, all of a file."
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Which drawn scenes, or which order of a file. Default: 0.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch", help=f"Questions answered at once. Default: {defaults.EVAL_BATCH}."),
]
Out = Annotated[Path | None, path_option(metavar="DIR", help="Folder for answers and report.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
Check = Annotated[
    Path | None,
    path_option(
        help="Ask again what this file of baselines was made with; exit 1 if a method is worse "
        "beyond noise."
    ),
]
Keep = Annotated[
    Path | None,
    path_option("--save-baselines", help="Write such a file of this run, or add the model to it."),
]


@one_line_errors
def evaluate(
    model: Model = None,
    methods: Methods = None,
    budgets: Budgets = None,
    tasks: Tasks = None,
    limit: Limit = None,
    seed: Seed = None,
    batch: BatchSize = None,
    out: Out = None,
    resume: Resume = False,
    device: Device = None,
    dtype: Dtype = None,
    max_memory: MaxMemory = None,
    check: Check = None,
    save_baselines: Keep = None,
    profile: Profile = None,
    quietly: Quiet = False,
) -> None:
    """Measure the accuracy of methods at budgets, beside baselines, with a report.

    Answers are appended to files in the folder, so the command can be stopped at any time and goes
    on with --resume. Several processes share the work and find the same answers:
    accelerate launch --num_processes 2 --module vlmcompress eval ...

    \b
    Examples:
      vlmcompress eval --methods divprune,fastv,scope --limit 200 --out results
      vlmcompress eval --model tiny-qwen --methods all --budgets 50%,25% --out results --resume
      vlmcompress eval --model llava-hf/llava-1.5-7b-hf --tasks mine.yaml --budgets 64 --out results
      vlmcompress eval --profile mine.json --budgets 25% --out results
      vlmcompress eval --check eval/baselines.json

    Needs the extra: pip install 'vlmcompress[eval]'.
    Bad input ends with exit code 2 and one line on stderr.
    """
    given = {
        "--model": model,
        "--methods": methods,
        "--budgets": budgets,
        "--tasks": tasks,
        "--limit": limit,
        "--seed": seed,
        "--batch": batch,
        "--out": out,
        "--dtype": dtype,
        "--max-memory": max_memory,
        "--save-baselines": save_baselines,
        "--profile": profile,
    }
    from vlmcompress.eval.extras import check_eval

    check_eval()
    if check is not None:
        _no_others([name for name, value in given.items() if value is not None])
        _check(check, device)
        return
    if out is None:
        raise VLMCompressError("give a folder for the answers and the report: --out DIR")
    if save_baselines is not None:
        check_output(save_baselines, frozenset({".json"}))
    from vlmcompress.eval.run.evaluate import Plan

    plan = Plan(
        defaults.MODEL if model is None else model,
        between_commas(defaults.METHOD if methods is None else methods),
        between_commas(defaults.EVAL_BUDGETS if budgets is None else budgets),
        None if tasks is None else between_commas(tasks),
        None if limit is None else _limit(limit),
        seed or 0,
        defaults.EVAL_BATCH if batch is None else batch,
        device,
        dtype,
        max_memory,
        profile,
    )
    _evaluate(plan, out, resume, save_baselines)


def _limit(text: str) -> int | dict[str, int]:
    """`500`, or `pictures=500,clips=200`."""
    parts = [part.rpartition("=") for part in between_commas(text)]
    if not all(count.strip().isdecimal() for _, _, count in parts):
        raise VLMCompressError(f"limit {text!r} is neither a count nor like pictures=500,clips=200")
    if len(parts) == 1 and not parts[0][1]:
        return int(text)
    return {name.strip(): int(count) for name, _, count in parts}


def _no_others(names: Sequence[str]) -> None:
    if names:
        raise VLMCompressError(f"--check repeats what its file says: it takes no {names[0]}")


def _evaluate(plan: Plan, out: Path, resume: bool, baselines: Path | None) -> None:
    import json
    from contextlib import nullcontext

    from vlmcompress.eval.gate import save
    from vlmcompress.eval.report.write import PAGE, RESULTS, write_report
    from vlmcompress.eval.results.summary import read_run
    from vlmcompress.eval.run.evaluate import Evaluation
    from vlmcompress.eval.run.store import check_folder, check_free, claimed

    check_free(out)
    check_folder(out, resume)
    with quiet():
        with progress(f"loading {plan.model}"):
            evaluation = Evaluation(plan)
            evaluation.check()
        # The processes of one `accelerate launch` are one run, of which the first holds the folder.
        with claimed(out) if evaluation.share.rank == 0 else nullcontext():
            _carry_out(evaluation, out, resume)
            if evaluation.share.rank > 0:
                return
            with progress("writing the report"):
                write_report(
                    out, read_run(out), evaluation.tasks, evaluation.model, evaluation.processor
                )
    results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    if baselines is not None:
        save(baselines, results)
    _show(results)
    typer.echo(f"report: {out / PAGE}")


def _carry_out(evaluation: Evaluation, out: Path, resume: bool) -> None:
    """Answer the questions; whoever stops that hears how to go on."""
    from vlmcompress.eval.run.store import RUN

    try:
        evaluation.carry_out(out, resume, Advance)
    except KeyboardInterrupt:
        if evaluation.share.rank == 0 and (out / RUN).exists():
            typer.echo(f"stopped: the same command with --resume goes on in {out}", err=True)
        raise


def _show(results: dict[str, Any]) -> None:
    """The warnings, accuracies, and the best at every budget; the rest stands in the report."""
    from vlmcompress.cli.tables import numbers, paragraph
    from vlmcompress.eval.report.text import accuracies, cannot, sentences, warnings

    for task, text in warnings(results):
        typer.echo(f"warning: {task}: {text}", err=True)
    for name, task in results["tasks"].items():
        numbers(name, *accuracies(task))
        for line in cannot(task):
            typer.echo(paragraph(f"{name}. {line}"))
        for heading, claims in sentences(task):
            typer.echo(paragraph(f"{name}. {heading}. {claims[0]}"))


def _check(file: Path, device: str | None) -> None:
    from vlmcompress.eval.gate import compare

    with quiet():
        verdict = compare(file, device, Advance)
    for line in verdict.lines:
        typer.echo(line)
    if not verdict.passed:
        raise typer.Exit(1)
