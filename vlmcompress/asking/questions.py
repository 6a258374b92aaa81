"""Many questions: rows of a file, or the files of a folder, each with what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlmcompress.errors import VLMCompressError
from vlmcompress.files.records import records
from vlmcompress.files.untrusted import check_file_name, short
from vlmcompress.media.given import kind_of
from vlmcompress.media.images import read_image
from vlmcompress.media.regular_files import check_file
from vlmcompress.media.video import VIDEO_SUFFIXES, Video, read_video

_MEDIA = ("image", "images", "video")


@dataclass(frozen=True)
class Question:
    """One question about files that have not been read yet."""

    where: str
    """File and line, or the file, for errors."""
    about: Mapping[str, Any]
    """As it stands in the file: `image`, `images` or `video`, and an `id` where there is one."""
    files: tuple[tuple[Path, str], ...]
    """Each with "image" or "video"."""
    text: str

    @property
    def has_video(self) -> bool:
        """Whether one of the files is a video."""
        return any(kind == "video" for _, kind in self.files)

    def shape(self) -> tuple[Any, ...] | None:
        """Equal for questions that can be asked in one batch without padding pictures.

        Only headers are read. None for clips and for what cannot be opened: they are asked alone.
        """
        if self.has_video:
            return None
        try:
            sizes = []
            for file, _ in self.files:
                with Image.open(file) as image:
                    sizes.append(image.size)
            return tuple(sizes)
        except Exception:  # `read` says what is wrong with it
            return None

    def read(self, frames: int | None, fps: float | None) -> list[Image.Image | Video]:
        """The pictures and clips.

        Raises:
            MediaError: one cannot be read.
        """
        return [
            read_video(file, frames, fps) if kind == "video" else read_image(file)
            for file, kind in self.files
        ]


def of_file(path: Path, question: str | None, folder: Path | None = None) -> Iterator[Question]:
    """The rows of a .jsonl or .csv file, one after the other.

    Args:
        path: names of pictures in it are relative to its own folder.
        question: for rows that have none of their own.
        folder: that names of pictures are relative to instead.

    Raises:
        VLMCompressError: a row is damaged, lacks a field, or names a file that is not there.
    """
    for where, record in records(path):
        try:
            yield _of_record(where, record, folder or path.parent, question)
        except VLMCompressError as error:
            raise VLMCompressError(f"{where}: {error}") from error


def of_files(files: Sequence[Path], question: str) -> Iterator[Question]:
    """The same question about each file by itself."""
    for file in files:
        kind = kind_of(str(file))
        check_file(file, kind)
        yield Question(str(file), {kind: str(file)}, ((file, kind),), question)


def in_folder(folder: Path) -> tuple[list[Path], int]:
    """The pictures and videos in a folder by name, and how many other files were passed over."""
    Image.init()
    known = {*Image.registered_extensions(), ".heic", ".heif", *VIDEO_SUFFIXES}
    entries = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in entries if path.suffix.lower() in known]
    return found, len(entries) - len(found)


def _of_record(
    where: str, record: Mapping[str, Any], folder: Path, question: str | None
) -> Question:
    given = {name: record[name] for name in _MEDIA if record.get(name) is not None}
    if len(given) != 1:
        raise VLMCompressError(
            f"expected one of the fields {', '.join(_MEDIA)}, got {', '.join(given) or 'none'}"
        )
    ((field, value),) = given.items()
    names = value if field == "images" else [value]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise VLMCompressError(f"field {field!r} must name files, got {short(value)}")
    files = []
    for name in names:
        check_file_name(name)
        file = folder / name
        kind = "video" if field == "video" else kind_of(str(file))
        check_file(file, kind)
        files.append((file, kind))
    text = record.get("question", question)
    if not isinstance(text, str) or not text.strip():
        raise VLMCompressError(
            "field 'question' is missing, and no question was given for all rows"
            if text is None
            else f"field 'question' must be a text, got {short(text)}"
        )
    number = record.get("id")
    about = given if number is None else {"id": number, **given}
    return Question(where, about, tuple(files), text)
