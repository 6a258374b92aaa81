"""Files of records, read one at a time: JSON lines, and CSV with a line of names."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.files.untrusted import MAX_LINE, check_text, parse_json

SUFFIXES = (".jsonl", ".csv")

Record = tuple[str, Mapping[str, Any]]
"""File and line, for errors, and the fields by name."""


def records(path: Path) -> Iterator[Record]:
    """The records of a .csv file, or of any other as JSON lines. Blank lines are passed over.

    A cell of a CSV that begins with a bracket is read as a JSON list where it is one; an empty cell
    is no field.

    Raises:
        VLMCompressError: the file cannot be read, or a line is damaged; the message names it.
    """
    read = _from_csv if path.suffix.lower() == ".csv" else _from_lines
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise VLMCompressError(f"data file {str(path)!r} is not UTF-8 text") from error
    except OSError as error:
        raise VLMCompressError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _from_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _object(where, line)


def _from_csv(path: Path) -> Iterator[Record]:
    # Spreadsheets write a byte-order mark; lines end as they will.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_lines(path, file), restkey="", strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if "" in row:
                    raise VLMCompressError(f"{where}: more cells than names in the first line")
                yield where, {name: _cell(where, text) for name, text in row.items() if text}
        except csv.Error as error:
            raise VLMCompressError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _lines(path: Path, file: Any) -> Iterator[str]:
    """The lines of a file, none of them endless."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), start=1):
        if len(line) > MAX_LINE:
            raise VLMCompressError(f"{path}, line {number}: longer than {MAX_LINE} letters")
        yield line


def _object(where: str, line: str) -> Mapping[str, Any]:
    try:
        found = parse_json(line)
    except VLMCompressError as error:
        raise VLMCompressError(f"{where}: {error}") from error
    if not isinstance(found, dict):
        raise VLMCompressError(f"{where}: expected an object {{...}}, got {line.strip()[:40]}")
    return found


def _cell(where: str, text: str) -> Any:
    try:
        check_text(text)
        return parse_json(text) if text.startswith("[") else text
    except VLMCompressError as error:
        if "not JSON" in str(error):
            return text
        raise VLMCompressError(f"{where}: {error}") from error
