"""Tasks by name: the built-in ones, and those that users bring in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.tasks.files import load_data, read_file_task
from vlmcompress.eval.tasks.from_worlds import WorldTask, read_world_task
from vlmcompress.eval.tasks.rows import DATA_SUFFIXES
from vlmcompress.eval.tasks.settings import Settings
from vlmcompress.eval.tasks.task import Task
from vlmcompress.registry import unknown

YAML_SUFFIXES = (".yaml", ".yml")


def load_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of `names`, in their order.

    Args:
        names: of built-in tasks, see `task_names`, or paths of .yaml, .jsonl and .parquet files.

    Raises:
        UnknownNameError: nothing is called so; the message suggests the nearest name.
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
    """Names of the built-in tasks, each followed by those of its kinds alone."""
    return list(_built_in())


def _load(name: str) -> Task:
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in DATA_SUFFIXES:
        return load_data(path)
    if suffix in YAML_SUFFIXES:
        settings = Settings(path)
        return read_world_task(settings) if "world" in settings else read_file_task(settings)
    if suffix or path.exists():
        allowed = ", ".join((*YAML_SUFFIXES, *DATA_SUFFIXES))
        raise VLMCompressError(f"task file {name!r} must end in one of {allowed}")
    known = _built_in()
    if name not in known:
        raise unknown("task", name, list(known))
    return known[name]


def _built_in() -> dict[str, WorldTask]:
    tasks: dict[str, WorldTask] = {}
    for path in sorted(Path(__file__).parent.glob("*.yaml"), reverse=True):
        whole = read_world_task(Settings(path))
        for task in (whole, *map(whole.only, whole.kinds)):
            tasks[task.name] = task
    return tasks
