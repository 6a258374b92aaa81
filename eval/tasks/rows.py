"""Rows of a user's data file: JSON lines, CSV or parquet, checked when the file is opened."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.files.records import SUFFIXES, records
from vlmcompress.files.untrusted import check_file_name, short
from vlmcompress.media.images import read_image
from vlmcompress.media.regular_files import check_file

DATA_SUFFIXES = (*SUFFIXES, ".parquet")
FIELDS = (
    *("image", "images", "video", "question", "answer", "answers"),
    *("choices", "kind", "id"),
)
"""What a row may have."""
DEFAULT_KIND = "all"
"""Kind of a row that names none."""


@dataclass(frozen=True)
class Row:
    """One question of a data file.

    Attributes:
        where: file and line, for errors.
        images: reads each of its images; empty where it is about a video.
        video: path of its video.
        question: as it stands in the file.
        answers: what counts as right.
        choices: what there is to choose from; empty where nothing is.
        kind: see `vlmcompress.eval.tasks.task.Sample`.
        id: the row's own, or None.
    """

    where: str
    images: tuple[Callable[[], Image], ...]
    video: Path | None
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    kind: str
    id: str | None


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """All rows of a .jsonl, .csv or .parquet file. Images and videos are only looked for, not read.

    Args:
        path: the file; paths of images and videos in it are relative to its folder.
        columns: what some of `FIELDS` are called in the file.

    Raises:
        VLMCompressError: the file is missing, empty or damaged, or a row lacks a field or has one
            of the wrong type; the message names the line.
    """
    check_file(path, "data file")
    if path.suffix.lower() == ".parquet":
        found = _from_parquet(path)
    else:
        found = ((where, record, None) for where, record in records(path))
    names = {field: field for field in FIELDS} | dict(columns or {})
    rows = []
    for where, record, embedded in found:
        # A field that is null counts as absent.
        given = {f: record[name] for f, name in names.items() if record.get(name) is not None}
        try:
            rows.append(_row(where, given, names, embedded, path.parent))
        except VLMCompressError as error:
            raise VLMCompressError(f"{where}: {error}") from error
    if not rows:
        raise VLMCompressError(f"data file {str(path)!r} has no rows")
    return rows


Embedded = Callable[[str, int], bytes]
"""Reads the bytes of image number so many in a column of a row."""
Record = tuple[str, Mapping[str, Any], Embedded | None]


def _from_parquet(path: Path) -> Iterator[Record]:
    with needs_eval():
        import pyarrow
        import pyarrow.parquet
    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for group in range(file.num_row_groups):
            place = 0
            for batch in file.iter_batches(batch_size=64, row_groups=[group]):
                for record in batch.to_pylist():
                    number += 1
                    embedded = functools.partial(_embedded, path, group, place)
                    yield f"{path}, row {number}", record, embedded
                    place += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise VLMCompressError(f"data file {str(path)!r} is not parquet: {error}") from error


def _embedded(path: Path, group: int, place: int, column: str, image: int) -> bytes:
    cell = _column(path, group, column)[place].as_py()
    content = _list(cell)[image]
    found: bytes = content["bytes"] if isinstance(content, dict) else content
    return found


@functools.lru_cache(maxsize=2)
def _column(path: Path, group: int, column: str) -> Any:
    """One column of one group of rows: no more of the pictures in a file is held at a time."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(column)


def _list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _row(
    where: str,
    given: Mapping[str, Any],
    names: Mapping[str, str],
    embedded: Embedded | None,
    folder: Path,
) -> Row:
    medium = _one_of(given, "image", "images", "video")
    images: tuple[Callable[[], Image], ...] = ()
    video = None
    if medium == "video":
        check_file_name(_text(given, "video"))
        video = folder / _text(given, "video")
        check_file(video, "video")
    else:
        read = embedded and functools.partial(embedded, names[medium])
        images = tuple(_images(where, medium, given[medium], read, folder))
    answers = _one_of(given, "answer", "answers")
    number = given.get("id")
    return Row(
        where=where,
        images=images,
        video=video,
        question=_text(given, "question"),
        answers=(_text(given, "answer"),) if answers == "answer" else _texts(given, "answers"),
        choices=_texts(given, "choices") if "choices" in given else (),
        kind=_text(given, "kind") if "kind" in given else DEFAULT_KIND,
        id=None if number is None else str(number),
    )


def _images(
    where: str, field: str, found: Any, embedded: Callable[[int], bytes] | None, folder: Path
) -> Iterator[Callable[[], Image]]:
    """What reads each image of a row: a path, bytes, or the {"bytes", "path"} of `datasets`."""
    if isinstance(found, list) != (field == "images") or found == []:
        wanted = "a list of images" if field == "images" else "one image"
        raise VLMCompressError(f"field {field!r} must be {wanted}, got {short(found)}")
    for number, image in enumerate(_list(found)):
        content = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
        if isinstance(content, str) and content:
            check_file_name(content)
            check_file(folder / content)
            yield functools.partial(read_image, folder / content)
        elif isinstance(content, bytes) and content and embedded is not None:
            read = functools.partial(embedded, number)
            yield functools.partial(_decode, f"{where}, image {number + 1}", read)
        else:
            allowed = "a path" if embedded is None else "a path or bytes"
            raise VLMCompressError(
                f"field {field!r}: an image must be {allowed}, got {short(image)}"
            )


def _decode(name: str, read: Callable[[], bytes]) -> Image:
    """The image in some bytes, with the limits and errors of `read_image`, which takes files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image"
        file.write_bytes(read())
        try:
            return read_image(file)
        except MediaError as error:
            raise MediaError(str(error).replace(repr(str(file)), repr(name))) from error


def _one_of(given: Mapping[str, Any], *fields: str) -> str:
    """The one field of several that a row has."""
    found = [field for field in fields if field in given]
    if len(found) != 1:
        wanted, got = " or ".join(map(repr, fields)), " and ".join(map(repr, found))
        raise VLMCompressError(f"expected one of the fields {wanted}, got {got or 'none'}")
    return found[0]


def _text(given: Mapping[str, Any], field: str) -> str:
    if field not in given:
        raise VLMCompressError(f"field {field!r} is missing")
    value = given[field]
    if not isinstance(value, str) or not value.strip():
        raise VLMCompressError(f"field {field!r} must be a text, got {short(value)}")
    return value


def _texts(given: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = given[field]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise VLMCompressError(f"field {field!r} must be a list of texts, got {short(value)}")
    return tuple(value)
