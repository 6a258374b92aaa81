"""The one check that every file of a stranger passes before a decoder sees it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vlmcompress.errors import MediaError
from vlmcompress.files.untrusted import short

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: str | os.PathLike[str], kind: str = "image") -> Path:
    """The path, which is that of a regular file with something in it.

    Reading a FIFO, a socket or a device may wait for ever, and neither can be read twice.

    Args:
        path: the file.
        kind: what the error calls it.

    Raises:
        MediaError: it is no path, missing, a folder, empty, or no regular file.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise MediaError(f"the {kind} must be the path of a file, got {short(path)}")
    file = Path(path)
    try:
        status = file.stat()
    except FileNotFoundError:
        raise MediaError(f"{kind} {str(file)!r} does not exist") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{kind} {str(file)!r} cannot be opened: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{kind} {str(file)!r} is a folder")
    if not stat.S_ISREG(status.st_mode):
        found = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise MediaError(
            f"{kind} {str(file)!r} is {found}, only regular files are read: save it to a file first"
        )
    if status.st_size == 0:
        raise MediaError(f"{kind} {str(file)!r} is an empty file")
    return file
