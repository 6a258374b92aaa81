"""The folder of a run: what was asked for, and files to which answers are only ever appended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.run.cases import Case
from vlmcompress.files import write_json
from vlmcompress.files.untrusted import parse_json, read_json

RUN, ANSWERS, TIMES = "run.json", "answers", "times"
_LOCK = ".lock"

_KEYS = {
    ANSWERS: {"task", "method", "budget", "index"},
    TIMES: {"task", "method", "budget", "batch", "warm_up"},
}
"""What every line has."""

Key = tuple[str, int, Case]
"""Task, index of the sample, case."""


class Store:
    """Answers and times of one process of a run.

    Each process appends to files of its own, a batch with one write, so that a process that is
    killed leaves at most one torn line behind it, at the end of its file. That is cut off when the
    run goes on.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder, self._rank = folder, rank

    def append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to `ANSWERS` or `TIMES`.

        Raises:
            VLMCompressError: the disk is full, or the like.
        """
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        path = self._folder / f"{name}-{self._rank}.jsonl"
        try:
            with path.open("ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise VLMCompressError(f"cannot write {str(path)!r}: {error.strerror}") from error

    def repair(self) -> None:
        """Cut torn lines off the ends of all files; for one process, before the others read."""
        for path in sorted(self._folder.glob("*-*.jsonl")):
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)

    def done(self) -> set[Key]:
        """What all processes have answered, or failed to."""
        return {
            (line["task"], line["index"], Case(line["method"], line["budget"]))
            for line in read_lines(self._folder, ANSWERS)
        }


def read_lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """All lines of all processes; a torn last line is passed over.

    Raises:
        VLMCompressError: another line is no JSON.
    """
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    break
                try:
                    found = parse_json(line)
                except VLMCompressError:
                    found = None
                if not isinstance(found, dict) or not _KEYS[name] <= found.keys():
                    raise VLMCompressError(
                        f"{str(path)!r} is damaged at line {number}: remove the line"
                    )
                yield found


def read_run_json(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        VLMCompressError: there is none, or it is not one.
    """
    path = folder / RUN
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise VLMCompressError(f"folder {str(folder)!r} holds no run: no {RUN}") from None
    except (OSError, VLMCompressError) as error:
        raise VLMCompressError(f"cannot read {str(path)!r}: {error}") from error
    if not _is_run(content):
        raise VLMCompressError(
            f"{str(path)!r} does not describe a run: remove it, or give another --out"
        )
    found: dict[str, Any] = content
    return found


def _is_run(content: Any) -> bool:
    """Whether it has what `begin` and `read_run` look at, each of the right kind."""
    if not isinstance(content, dict):
        return False
    cases, provenance = (content.get(key, {}) for key in ("cases", "provenance"))
    tasks = content.get("tasks", [])
    if not (isinstance(cases, dict) and isinstance(provenance, dict) and isinstance(tasks, list)):
        return False
    return all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in tasks)


_SAME = ("model", "weights_sha256", "dtype", "attention", "batch", "seed")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if it is not there.

    Raises:
        VLMCompressError: a run that has not ended is at work in it; or it cannot be made.
    """
    with needs_eval():
        from filelock import FileLock, Timeout

    _make(folder)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise VLMCompressError(
            f"another eval is at work in folder {str(folder)!r}: wait for it, or give another --out"
        ) from None
    except OSError as error:
        raise VLMCompressError(f"cannot lock {str(folder)!r}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Raise a VLMCompressError if another run is at work in the folder; nothing is made."""
    if (folder / _LOCK).exists():
        with claimed(folder):
            pass


def check_folder(folder: Path, resume: bool) -> None:
    """Raise a VLMCompressError if the folder holds a run that is not to be gone on with."""
    if (folder / RUN).exists() and not resume:
        raise VLMCompressError(
            f"folder {str(folder)!r} holds a run: go on with --resume, or give another --out"
        )


def begin(folder: Path, run: Mapping[str, Any], resume: bool) -> None:
    """Make the folder of a new run, or go on with the one that it holds.

    Raises:
        VLMCompressError: it holds a run and `resume` is not set; or another run; or it cannot be
            made.
    """
    check_folder(folder, resume)
    if (folder / RUN).exists():
        _compare(folder, read_run_json(folder), run)
    _make(folder)
    write_json(folder / RUN, run)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VLMCompressError(f"cannot make {str(folder)!r}: {error.strerror}") from error


def _compare(folder: Path, found: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raise unless answers of the one may stand beside answers of the other."""
    before, now = found.get("provenance", {}), run["provenance"]
    for key in _SAME:
        if before.get(key) != now.get(key):
            raise VLMCompressError(
                f"folder {str(folder)!r} holds another run: {key} {before.get(key)!r} there, "
                f"{now.get(key)!r} now"
            )
    known = {task["name"]: task for task in found.get("tasks", [])}
    for task in run["tasks"]:
        if known.get(task["name"], task) != task:
            raise VLMCompressError(
                f"folder {str(folder)!r} holds another run: task {task['name']} or its limit has "
                "changed"
            )
