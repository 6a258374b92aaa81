"""decord, on files where it was found exact and that cannot bring it down.

It sizes its tables by what a header claims and aborts the process where that is too much, counts
frames that an edit list hides, and lands on the wrong side of an open group of pictures when it
seeks. So it gets a file only after the index has ruled all of that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.clip import Frame, compare_times, damaged, disagrees
from vlmcompress.media.decoders.pyav import PyAVClip


class DecordClip:
    """A file opened by decord."""

    name = "decord"

    def __init__(self, decord: ModuleType, file: Path, source: PyAVClip) -> None:
        """Open `file` if the index of `source` allows, and compare it with that.

        Raises:
            MediaError: decord would give other frames, or cannot open it.
        """
        self._file, self._source = file, source
        self.index = index = source.index
        why = index.oddity or ("its groups of pictures are open" if index.open_groups else None)
        why = why or (None if _is_known(file) else "it is neither MP4 nor Matroska nor WebM")
        if why is not None:
            raise disagrees(file, self.name, why)
        try:
            self._reader: Any = decord.VideoReader(str(file.absolute()))
            count = len(self._reader)
            spans = np.asarray(self._reader.get_frame_timestamp(range(count)), float)
        # decord raises its own error and RuntimeError, with C++ traces for messages.
        except Exception as error:
            raise disagrees(file, self.name, "it cannot open it") from error
        if count != len(index):
            raise disagrees(file, self.name, f"it counts {count} frames of {len(index)}")
        compare_times(file, self.name, index, range(count), spans[:, 0] - spans[0, 0])

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Clip.frames`."""
        for key in sorted({self.index.key_before(index) for index in indices} - {0}):
            if not self._source.seeks_to(key):
                why = f"it cannot begin at key frame {key}"
                raise disagrees(self._file, self.name, why)
        for index in indices:
            try:
                frame = self._reader[index]
            except Exception as error:
                raise damaged(self._file, f"frame {index} cannot be decoded") from error
            # A user may have set one of decord's bridges, which hand out tensors.
            array = frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
            height, width = array.shape[:2]
            # Rows of rotated or very small frames come with their padding as further channels.
            rows = array.reshape(height, -1)[:, : 3 * width]
            yield np.ascontiguousarray(rows, dtype=np.uint8).reshape(height, width, 3)


def _is_known(file: Path) -> bool:
    """Whether decord's seeking was found exact in this kind of container."""
    try:
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError as error:
        raise MediaError(f"video {str(file)!r} cannot be opened: {error.strerror}") from error
    return head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3"
