"""`tune`: a race kept in a folder so that it can go on, and the profile that comes of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from vlmcompress import defaults
from vlmcompress.budget.budget import Budget
from vlmcompress.errors import BudgetError, UnsupportedModelError, VLMCompressError
from vlmcompress.eval.run.provenance import of_run
from vlmcompress.eval.run.store import ANSWERS, TIMES, Store, begin, claimed, read_lines
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.files import at_home, check_output, write_json
from vlmcompress.methods.composition.spec import parse
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.tuned import Tuned, identity
from vlmcompress.tuning.candidates import candidates as every
from vlmcompress.tuning.candidates import takes_budget
from vlmcompress.tuning.profile import document
from vlmcompress.tuning.race import OBJECTIVES, Objective
from vlmcompress.tuning.run import Plan, Progress, Race
from vlmcompress.tuning.samples import TASK, read_samples

Watch = Callable[[int], AbstractContextManager[Progress]]
"""Gets the number of measurements, and is told of each."""
UNFINISHED = ".tuning"
"""Suffix, in the place of the profile's, of the folder that a race is kept in."""


def folder_of(out: Path) -> Path:
    """Where the race of a profile is kept until it is complete."""
    return out.with_suffix(UNFINISHED)


def plan_of(
    budgets: Sequence[str],
    specs: Sequence[str] | None = None,
    question_blind: bool = False,
    **settings: Any,
) -> Plan:
    """A plan, checked as far as that goes without a model.

    Args:
        budgets: counts or shares of the tokens.
        specs: candidates; None for all there are.
        question_blind: only those that keep the same whatever is asked.
        settings: the other fields of a `Plan`.

    Raises:
        VLMCompressError: a budget or candidate that cannot be raced, or a number out of range.
    """
    if not budgets:
        raise BudgetError("no budget is given: for example --budget 25%,12.5%")
    named = every(question_blind) if specs is None else list(dict.fromkeys(specs))
    for spec in named if specs is not None else ():
        _check_candidate(spec, question_blind)
    plan = Plan(tuple(dict.fromkeys(map(_checked, budgets))), tuple(named), **settings)
    if plan.objective not in OBJECTIVES:
        raise VLMCompressError(
            f"objective {plan.objective!r} is not possible: give {', '.join(OBJECTIVES)}"
        )
    if plan.minutes is not None and not plan.minutes > 0:
        raise VLMCompressError(f"--minutes must be above 0, got {plan.minutes:g}")
    return plan


def tune(
    model: Any,
    processor: Any,
    media: str | Path | None,
    questions: str | Path | None = None,
    budgets: str | Sequence[str] = defaults.EVAL_BUDGETS,
    *,
    out: str | Path,
    candidates: Sequence[str] | None = None,
    question_blind: bool = False,
    objective: Objective = "accuracy",
    samples: int = defaults.TUNE_SAMPLES,
    seed: int = 0,
    batch: int = defaults.TUNE_BATCH,
    max_new_tokens: int = defaults.TUNE_TOKENS,
    minutes: float | None = None,
    frames: int | None = None,
    fps: float | None = None,
    resume: bool = False,
) -> Tuned:
    """Find the method for a model and a user's pictures, without labels.

    For a sample of pictures and questions the whole model's next-token distributions over its own
    answer are the reference. Methods race on how like it the compressed model is: on the mean KL
    and on whether the greedy answer stays the same, on the same questions, in successive halving
    with paired tests. `compress(model, "auto", budget, profile=out)` takes what was found.

        >>> found = vlmcompress.tune(model, processor, "photos", budgets="25%", out="mine.json")
        >>> print(found)

    Args:
        model: a Hugging Face vision-language model of a supported family, not compressed.
        processor: its own.
        media: a folder of pictures and clips; None where the questions name theirs.
        questions: a .jsonl or .csv file, see `read_samples`. None asks general ones.
        budgets: counts or shares of the tokens, several as a list or separated by commas.
        out: the .json file of the profile.
        candidates: specs; None races all of `vlmcompress.tuning.candidates`.
        question_blind: only methods that keep the same whatever is asked.
        objective: "accuracy" takes the one most like the whole model, "time" the fastest that is
            not significantly worse than it, "pareto" as "accuracy", and keeps in the race whatever
            is faster.
        samples: questions at most.
        seed: of their order.
        batch: questions at once.
        max_new_tokens: longest answer.
        minutes: end after so many, with what is known then.
        frames: sampled of each clip.
        fps: frames a second sampled instead.
        resume: go on with a race that was stopped.

    Returns:
        The profile; printed, a line for each budget.

    Raises:
        VLMCompressError: as `plan_of`, `read_samples` and `carry_out`.
    """
    path = at_home(out)
    check_output(path, frozenset({".json"}))
    plan = plan_of(
        [part.strip() for part in budgets.split(",")] if isinstance(budgets, str) else budgets,
        candidates,
        question_blind,
        objective=objective,
        batch=batch,
        longest=max_new_tokens,
        minutes=minutes,
    )
    asked = read_samples(
        None if media is None else at_home(media),
        None if questions is None else at_home(questions),
        samples,
        seed,
        frames,
        fps,
    )
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    carry_out(
        model, processor, asked, plan, name=name, out=path, resume=resume, seed=seed, watch=_unseen
    )
    return Tuned.read(path)


def carry_out(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    plan: Plan,
    *,
    name: str,
    out: Path,
    watch: Watch,
    resume: bool = False,
    **made: Any,
) -> dict[str, Any]:
    """Race on samples, and write the profile.

    What is measured is appended to files in `folder_of(out)`, which goes when all questions were
    asked. A race that was stopped leaves no profile there that is half written, and goes on with
    `resume` as if it had not been stopped; but for times, which are measured once only.

    Args:
        model: of a supported family, not compressed.
        processor: its own.
        samples: of `read_samples`.
        plan: of `plan_of`.
        name: of the model, as it was given.
        out: the file of the profile.
        watch: shows how far it is.
        resume: go on with the race that the folder holds.
        made: further settings that the profile names, such as the seed.

    Returns:
        The contents of the profile.

    Raises:
        VLMCompressError: the folder holds another race, no candidate can run, nothing can be read,
            the minutes are too short, or a file cannot be written.
    """
    parts = ModelParts.of(model)
    if not parts.family.video and any(sample.kind == "video" for sample in samples):
        raise UnsupportedModelError(f"{type(model).__name__} takes no videos, as --media holds")
    about = {
        "name": TASK,
        "budgets": list(plan.budgets),
        "candidates": list(plan.candidates),
        "objective": plan.objective,
        "longest": plan.longest,
        "samples": len(samples),
        "sha256": _digest(samples),
    }
    provenance = of_run(name, model, batch=plan.batch, **made)
    folder = folder_of(out)
    with claimed(folder):
        begin(folder, {"provenance": provenance, "tasks": [about], "cases": {}}, resume)
        store = Store(folder)
        store.repair()
        race = Race(model, processor, samples, plan, store)
        race.kept.remember(read_lines(folder, ANSWERS), read_lines(folder, TIMES))
        with watch(race.steps) as progress:
            race.run(progress)
        found = document(
            race, {"name": name, **identity(parts)}, {**provenance, "samples": len(samples)}
        )
        write_json(out, found)
    if found["complete"]:
        shutil.rmtree(folder, ignore_errors=True)
    return found


@contextmanager
def _unseen(steps: int) -> Iterator[Progress]:
    """Nobody is shown how far it is."""
    yield lambda done, what: None


def _checked(budget: str) -> str:
    parsed = Budget.parse(budget)
    if parsed.is_cost or (parsed.per_frame and parsed.unit == "tokens"):
        raise BudgetError(
            f'budget {parsed} cannot be tuned for: give a share such as "25%" or a count such as '
            "64; what a method costs is measured (--objective)"
        )
    return str(parsed)


def _check_candidate(spec: str, question_blind: bool) -> None:
    if spec == defaults.AUTO:
        raise VLMCompressError(f"{defaults.AUTO} takes candidates and is none: name methods")
    reads = parse(spec).reads_question
    if not takes_budget(spec):
        raise VLMCompressError(f"candidate {spec} takes no budget")
    if question_blind and reads:
        raise VLMCompressError(f"candidate {spec} reads the question, and --question-blind is set")


def _digest(samples: Sequence[Sample]) -> str:
    """Of what is asked about which files."""
    asked = [[sample.extra, sample.question] for sample in samples]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
