"""A whole evaluation: a folder of answers, and the report about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmcompress.budget.budget import Budget
from vlmcompress.budget.memory import bytes_of
from vlmcompress.defaults import AUTO, EVAL_BATCH
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.cases import Case, cases
from vlmcompress.eval.run.provenance import of_run
from vlmcompress.eval.run.runner import Job, Progress, Share, check_budgets, pieces, run
from vlmcompress.eval.run.store import RUN, Store, begin, read_run_json
from vlmcompress.eval.tasks.from_worlds import world_of
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.tasks.task import Task
from vlmcompress.models import loading
from vlmcompress.models.names import resolve
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.registry import family_of
from vlmcompress.registry import unknown
from vlmcompress.tuned import Tuned

Watch = Callable[[int, Share], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    Attributes:
        model: built-in name, folder or Hugging Face id.
        methods: specs, or "all".
        budgets: as `Budget.parse` takes them.
        tasks: names and files; None for the built-in ones that the model can take.
        limit: samples of each task, or of some by name; None for what the task says.
        seed: of the samples.
        batch: samples that are answered at once.
        device: where the model runs.
        dtype: of its weights.
        max_memory: that the vision encoder may take for a clip; see `compress`.
        profile: of `vlmcompress tune`; what it takes at each budget is among the methods, and
            "auto" means nothing else.
    """

    model: str
    methods: Sequence[str]
    budgets: Sequence[str]
    tasks: Sequence[str] | None = None
    limit: int | Mapping[str, int] | None = None
    seed: int = 0
    batch: int = EVAL_BATCH
    device: str | None = None
    dtype: str | None = None
    max_memory: int | str | None = None
    profile: Path | None = None

    @property
    def named(self) -> list[str]:
        """The methods but "auto" of a profile, which is one of them at each budget."""
        return [one for one in self.methods if one != AUTO or self.profile is None]

    def limit_of(self, task: str) -> int | None:
        """Samples of one task."""
        return self.limit.get(task) if isinstance(self.limit, Mapping) else self.limit


class Evaluation:
    """A plan with its model and samples, in one of the processes that carry it out.

    Raises:
        VLMCompressError: anything about the plan is wrong; nothing has been written then.
    """

    def __init__(self, plan: Plan) -> None:
        named = _check(plan)
        self.plan = plan
        self.share = _share(plan.device)
        self.model, self.processor = loading.load(
            plan.model, device=_device(plan.device), dtype=plan.dtype
        )
        self.tasks = _tasks(plan.model, self.model, named)
        if isinstance(plan.limit, Mapping):
            names = [task.name for task in self.tasks]
            for name in plan.limit:
                if name not in names:
                    raise unknown("task with a limit", name, names)
        tuned = _tuned(plan, self.model)
        self.jobs = [
            Job(
                task,
                task.samples(plan.limit_of(task.name), plan.seed),
                _union(cases(plan.named, plan.budgets, task.medium == "video"), tuned),
            )
            for task in self.tasks
        ]

    def check(self) -> None:
        """Ask one question at each budget, before many are asked in vain.

        Raises:
            VLMCompressError: no method can keep to one of the budgets.
        """
        check_budgets(self.model, self.processor, self.jobs, self.plan.max_memory)

    def carry_out(self, folder: Path, resume: bool, watch: Watch) -> None:
        """Answer what the folder does not hold; every process comes back when all are done.

        Args:
            folder: of the run; made if it is not there.
            resume: whether it may hold answers already.
            watch: gets the number of answers that this process has to find, and its share.

        Raises:
            VLMCompressError: the folder holds another run, or cannot be written.
        """
        store = Store(folder, self.share.rank)
        if self.share.rank == 0:
            begin(folder, self._description(folder), resume)
            store.repair()
        self._wait()
        work = pieces(self.jobs, self.plan.batch, self.share, store.done())
        with watch(sum(piece.answers for piece in work), self.share) as progress:
            run(self.model, self.processor, work, store, progress, self.plan.max_memory)
        self._wait()

    def _wait(self) -> None:
        if self.share.of > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def _description(self, folder: Path) -> dict[str, Any]:
        """The content of run.json; cases of the run that the folder holds stay."""
        plan = self.plan
        known = read_run_json(folder) if (folder / RUN).exists() else {"cases": {}, "tasks": []}
        mine = {job.task.name: _pairs(job.cases) for job in self.jobs}
        described = {
            task.name: {**task.describe(), "limit": plan.limit_of(task.name)} for task in self.tasks
        }
        before = {task["name"]: task for task in known.get("tasks", [])}
        return {
            "provenance": of_run(
                plan.model,
                self.model,
                batch=plan.batch,
                processes=self.share.of,
                seed=plan.seed,
                **({} if plan.max_memory is None else {"max_memory": plan.max_memory}),
            ),
            "methods": list(plan.methods),
            "budgets": list(plan.budgets),
            "tasks": list((before | described).values()),
            "cases": {
                name: _union(known.get("cases", {}).get(name, []), mine.get(name, []))
                for name in before | mine
            },
        }


def _check(plan: Plan) -> list[Task] | None:
    """What can be checked without a model, the cheapest first; gives the tasks that were named."""
    resolve(plan.model)
    cases(plan.named, plan.budgets, video=False)
    if plan.max_memory is not None:
        bytes_of(plan.max_memory)
    if plan.profile is not None:
        Tuned.read(plan.profile)
    limits = plan.limit.values() if isinstance(plan.limit, Mapping) else [plan.limit]
    for limit in limits:
        if limit is not None and limit < 1:
            raise VLMCompressError(f"a limit is 1 or more, got {limit}")
    if plan.batch < 1:
        raise VLMCompressError(f"a batch is 1 or more, got {plan.batch}")
    return None if plan.tasks is None else load_tasks(plan.tasks)


def _tasks(name: str, model: Any, named: list[Task] | None) -> list[Task]:
    """The named tasks, or the built-in ones that the model can take."""
    video = family_of(model).video
    if named is None:
        return load_tasks([world_of(name), *(["clips"] if video else [])])
    blind = [task.name for task in named if task.medium == "video" and not video]
    if blind:
        raise VLMCompressError(f"{type(model).__name__} takes no videos, as {blind[0]} asks for")
    return named


def _tuned(plan: Plan, model: Any) -> list[Case]:
    """What the profile takes at each budget."""
    if plan.profile is None:
        return []
    tuned, parts = Tuned.read(plan.profile), ModelParts.of(model)
    return [Case(tuned.choice(parts, Budget.parse(budget)).spec, budget) for budget in plan.budgets]


def _pairs(found: Sequence[Case]) -> list[list[str | None]]:
    return [[case.method, case.budget] for case in found]


def _union(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    return [*first, *(one for one in second if one not in first)]


def _share(device: str | None) -> Share:
    """Which part of the work this process has, of those that `accelerate launch` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    from accelerate import PartialState

    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    state = PartialState(cpu=on_cpu)
    return Share(state.process_index, state.num_processes)


def _device(given: str | None) -> str | None:
    """The GPU of this process, where there is one for each."""
    if given is None and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return given
