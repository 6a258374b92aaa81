"""Tasks by name: the built-in ones, those of other packages, and those that users have in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.tasks.files import load_data, read_file_task
from vlmcompress.eval.tasks.from_worlds import WORLDS, WorldTask, read_world_task
from vlmcompress.eval.tasks.rows import DATA_SUFFIXES
from vlmcompress.eval.tasks.settings import Settings
from vlmcompress.eval.tasks.task import Task
from vlmcompress.files import at_home
from vlmcompress.registry import PlugIns, unknown

YAML_SUFFIXES = (".yaml", ".yml")

PLUG_INS = PlugIns("task", "vlmcompress.tasks")
"""Tasks of other packages. An entry point gives the path of a file, or a class or object with the
members of `Task`; the task's own name is that of the entry point."""

_MEMBERS = (
    "name",
    "version",
    "medium",
    "metric",
    "max_new_tokens",
    "samples",
    "score",
    "describe",
)


def load_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of `names`, in their order.

    Args:
        names: of built-in tasks and those of other packages, see `task_names`, or paths of .yaml,
            .jsonl, .csv and .parquet files.

    Raises:
        UnknownNameError: nothing is called so; the message suggests the nearest name.
        PlugInError: the package that offers the task is broken.
        VLMCompressError: a file is missing or wrong, or two tasks have one name.
    """
    if not names:
        raise VLMCompressError(f"no task is given: known: {', '.join(task_names())}, or a file")
    tasks = [_load(name) for name in names]
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise VLMCompressError(f"two tasks are called {task.name!r}: give one of them another")
        seen.add(task.name)
    return tasks


def task_names() -> list[str]:
    """Names of the built-in tasks, each followed by those of its kinds alone, and of plug-ins."""
    known = _built_in()
    return [*known, *PLUG_INS.names(known)]


def _load(name: str) -> Task:
    path = at_home(name)
    if path.suffix:
        return _from_file(path)
    known = _built_in()
    if name in known:
        return known[name]
    if name in PLUG_INS.names(known):
        return PLUG_INS.load(name, lambda found: _from_package(name, found))
    if path.exists():
        return _from_file(path)  # which says what a file must end in
    raise unknown("task", name, task_names())


def _from_file(path: Path) -> Task:
    suffix = path.suffix.lower()
    if suffix in DATA_SUFFIXES:
        return load_data(path)
    if suffix in YAML_SUFFIXES:
        settings = Settings(path)
        return read_world_task(settings) if "world" in settings else read_file_task(settings)
    allowed = ", ".join((*YAML_SUFFIXES, *DATA_SUFFIXES))
    raise VLMCompressError(f"task file {str(path)!r} must end in one of {allowed}")


def _from_package(name: str, found: object) -> Task:
    """The task that an entry point gives."""
    if isinstance(found, (str, Path)):
        task = _from_file(Path(found))
    else:
        task = cast("Task", found() if isinstance(found, type) else found)
        missing = [member for member in _MEMBERS if not hasattr(task, member)]
        if missing:
            raise VLMCompressError(f"{type(task).__name__} does not define {', '.join(missing)}")
    # Answers in a folder, and baselines, are found again by this name.
    if task.name != name:
        raise VLMCompressError(f"the task calls itself {task.name!r}")
    return task


def _built_in() -> dict[str, WorldTask]:
    found = [read_world_task(Settings(path)) for path in Path(__file__).parent.glob("*.yaml")]
    tasks: dict[str, WorldTask] = {}
    for whole in sorted(found, key=lambda task: list(WORLDS).index(task.world)):
        for task in (whole, *map(whole.only, whole.kinds)):
            tasks[task.name] = task
    return tasks
