"""The file of answers to many questions: appended to window by window, and gone on with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmcompress.asking.answer import Answer
from vlmcompress.asking.questions import Question
from vlmcompress.asking.setting import Setting
from vlmcompress.errors import VLMCompressError
from vlmcompress.files.untrusted import one_line, parse_json
from vlmcompress.tuned import Tuned

COLUMNS = (
    *("id", "image", "images", "video", "question", "answer", "error"),
    *("tokens", "kept", "mean", "model", "method", "budget", "run"),
)
"""Of a CSV; a JSON line has those that are known."""


def run_of(model: str, setting: Setting, **settings: Any) -> dict[str, Any]:
    """What every row says of how it came about; `run` is equal for equal settings only."""
    budget = None if setting.budget is None else str(setting.budget)
    said = {"model": model, "method": setting.label, "budget": budget}
    whole = {**said, "methods": repr(setting.methods), "positions": setting.positions, **settings}
    if setting.profile is not None:
        whole["profile"] = Tuned.read(setting.profile).budgets
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return {**said, "run": digest[:12]}


def row_of(
    question: Question, found: Answer | VLMCompressError, run: Mapping[str, Any]
) -> dict[str, Any]:
    """One row: what was asked, what was answered, and on how many visual tokens. No times, so that
    the same command gives the same file."""
    said = {**question.about, "question": question.text}
    if isinstance(found, VLMCompressError):
        return {**said, "error": one_line(found), **run}
    counts = {"tokens": found.before, "kept": found.after, "mean": round(found.mean, 4)}
    return {**said, "answer": found.answer, **counts, **run}


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class Results:
    """A .jsonl or .csv file of rows.

    Windows are added with one write each, so that a process that is killed leaves whole windows
    and perhaps a torn one at the end, which `resume` cuts off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._csv = path.suffix.lower() == ".csv"

    def begin(self) -> None:
        """Make the file, with the names of the columns in a CSV.

        Raises:
            VLMCompressError: it is there, or cannot be made.
        """
        try:
            with self._path.open("x", encoding="utf-8", newline="") as file:
                file.write(_csv_text([COLUMNS]) if self._csv else "")
        except FileExistsError:
            raise VLMCompressError(
                f"{str(self._path)!r} exists: go on with --resume, or give another --out"
            ) from None
        except OSError as error:
            raise VLMCompressError(f"cannot write {str(self._path)!r}: {error.strerror}") from error

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a window.

        Raises:
            VLMCompressError: the disk is full, or the like.
        """
        text = _csv_text(map(_cells, rows)) if self._csv else as_lines(rows)
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(text.encode("utf-8"))
        except OSError as error:
            raise VLMCompressError(f"cannot write {str(self._path)!r}: {error.strerror}") from error

    def resume(self, questions: Iterable[Question], run: Mapping[str, Any], window: int) -> int:
        """Cut off what is torn, and count the questions that need not be asked again.

        Args:
            questions: all of them, in order.
            run: see `run_of`.
            window: questions that are written at once.

        Raises:
            VLMCompressError: the rows are of other settings or of other questions.
        """
        if self._path.stat().st_size < self._head:  # killed before its first line was written
            self._path.unlink()
            self.begin()
        count, last, whole = 0, self._head, self._head
        asked = iter(questions)
        for where, row, stop in self._rows():
            question = next(asked, None)
            if question is None:
                raise VLMCompressError(f"{where}: there are more rows than questions")
            self._compare(where, row, question, run)
            count, last = count + 1, stop
            if count % window == 0:
                whole = stop
        if next(asked, None) is not None:
            # Windows start over whole, so that their batches are those of one run.
            count, last = count - count % window, whole
        os.truncate(self._path, last)
        return count

    @property
    def _head(self) -> int:
        return len(_csv_text([COLUMNS]).encode()) if self._csv else 0

    def _compare(
        self, where: str, row: Mapping[str, Any], question: Question, run: Mapping[str, Any]
    ) -> None:
        if row.get("run") != run["run"]:
            raise VLMCompressError(
                f"{where}: it was answered with other settings ({row.get('model')}, "
                f"{row.get('method')} at {row.get('budget')}): repeat the same command, or give "
                "another --out"
            )
        wanted = {**question.about, "question": question.text}
        if self._csv:
            wanted = {
                name: cell for name, cell in zip(COLUMNS, _cells(wanted), strict=True) if cell
            }
        for name, value in wanted.items():
            if row.get(name) != value:
                raise VLMCompressError(
                    f"{where}: it answers another question than {question.where} asks: give "
                    "another --out"
                )

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any], int]]:
        """Where each whole row stands, what it says, and the byte behind it."""
        try:
            with self._path.open("rb") as file:
                yield from self._parsed(_Counted(file))
        except OSError as error:
            raise VLMCompressError(f"cannot read {str(self._path)!r}: {error.strerror}") from error

    def _parsed(self, lines: _Counted) -> Iterator[tuple[str, Mapping[str, Any], int]]:
        if not self._csv:
            for line in lines:
                where = f"{self._path}, line {lines.number}"
                try:
                    row = parse_json(line)
                except VLMCompressError as error:
                    raise VLMCompressError(f"{where}: {error}") from error
                yield where, row if isinstance(row, dict) else {}, lines.end
            return
        reader = csv.reader(lines, strict=True)
        try:
            if tuple(next(reader, ())) != COLUMNS:
                raise VLMCompressError(f"{str(self._path)!r} has other columns: give another --out")
            for cells in reader:
                where = f"{self._path}, line {lines.number}"
                yield where, dict(zip(COLUMNS, cells, strict=False)), lines.end
        except csv.Error as error:
            if lines.torn:
                return  # a quoted cell that goes on in the line that was torn
            raise VLMCompressError(f"{self._path}, line {lines.number}: {error}") from error


class _Counted:
    """The whole lines of a file as texts, with the byte behind the last one."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.number = self.end = 0
        self.torn = False

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self.number += 1
            self.end += len(line)
            yield line.decode("utf-8", "replace")
        self.torn = True


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [_cell(row.get(name)) for name in COLUMNS]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()
