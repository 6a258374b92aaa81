"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

from vlmcompress.errors import VLMCompressError


def cache_folder(kind: str) -> Path:
    """Where this user keeps what was measured of one kind; it need not be there yet."""
    return user_cache_path("vlmcompress", appauthor=False) / kind


def at_home(path: str | Path) -> Path:
    """`path`, with the home folder for a `~` that no shell has put in."""
    return Path(os.path.expanduser(path))


def check_output(path: Path, suffixes: frozenset[str]) -> None:
    """Raise unless a file with one of `suffixes` can be written at `path`."""
    if path.suffix.lower() not in suffixes:
        raise VLMCompressError(
            f"cannot write {str(path)!r}: the name must end in {', '.join(sorted(suffixes))}"
        )
    if path.is_dir():
        raise VLMCompressError(f"cannot write {str(path)!r}: it is a folder")
    if not path.parent.is_dir():
        raise VLMCompressError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}"
        )
    if not os.access(path.parent, os.W_OK):
        raise VLMCompressError(f"cannot write {str(path)!r}: permission denied")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends well, and vanishes when not.

    Raises:
        VLMCompressError: it cannot be written.
    """
    try:
        # A folder that nobody else has, not a file: a file made by `tempfile` is closed to others.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".draft-") as folder:
            draft = Path(folder, path.name)
            yield draft
            os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        raise VLMCompressError(f"cannot write {str(path)!r}: {reason}") from error


def write_json(path: Path, content: object) -> None:
    """A JSON document, for people to read as well.

    Raises:
        VLMCompressError: it cannot be written.
    """
    with whole_file(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")
