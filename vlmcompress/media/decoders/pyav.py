"""PyAV: makes the index by which every other decoder is judged, and decodes by it.

Seeking gives what decoding in order gives: every frame between a key frame and the one that is
wanted is compared with the index, and where one differs all is decoded from the start.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.clip import Frame, IndexMismatchError, damaged
from vlmcompress.media.decoders.index import count_frames, make_index
from vlmcompress.media.decoders.pyav_file import PyAVFile, Shown

_INTRA = 1
"""FFmpeg's AV_PICTURE_TYPE_I."""
_STEPS_BACK = (0, 1, 3)
"""Key frames before the wanted one at which seeking is tried: some containers land behind it."""

Followed = Iterator[tuple[int, Any, bool]]
"""Index of a frame, the frame, and whether it was decoded whole."""


class PyAVClip:
    """A file opened by PyAV."""

    name = "PyAV"

    def __init__(self, av: ModuleType, file: Path, max_pixels: int) -> None:
        """Open `file` and find out which frames it shows.

        Raises:
            MediaError: it cannot be opened, has no video stream, is damaged or too large.
        """
        self._opened = PyAVFile(av, file, max_pixels)
        self.decodes = self._opened.decodes
        """Whether this build of PyAV has a decoder for it."""
        self.index = make_index(self._opened)

    def recount(self) -> None:
        """Replace the index by what decoding from end to end shows."""
        self.index = count_frames(self._opened, "it shows other frames than its packets say")

    def close(self) -> None:
        """Give the file back; `index` stays."""
        self._opened.close()

    def seeks_to(self, key: int) -> bool:
        """Whether a seek to the key frame `key` gives it first, and it is one."""
        with self._opened.reading():
            try:
                position, frame, whole = next(self._seek(key), (-1, None, False))
            except MediaError:
                return False
            return position == key and whole and _is_intra(frame)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Clip.frames`."""
        with self._opened.reading():
            if self.index.stamps is None:
                yield from self._by_counting(indices)
            else:
                yield from self._by_stamps(indices)

    def _by_counting(self, indices: Sequence[int]) -> Iterator[Frame]:
        source = enumerate(self._opened.from_start())
        for index in indices:
            for place, (frame, whole) in source:
                if place == index:
                    if not whole:
                        raise self._lost(index)
                    yield upright(frame)
                    break
            else:
                raise self._lost(index)

    def _by_stamps(self, indices: Sequence[int]) -> Iterator[Frame]:
        source = self._follow(self._opened.from_start(), 0)
        position, seeks, sought = -1, True, False
        for index in indices:
            key = self.index.key_before(index) if seeks else 0
            # Decoding on is cheaper than seeking, unless a key frame lies in between.
            if key > position + 1:
                source, sought = self._seek(index), True
            try:
                frame = self._take(source, index)
            except MediaError:
                if not (sought or self._opened.frame_threads):
                    raise
                # Either seeking misleads, or the file is bad: decoding in order will tell.
                seeks = sought = self._opened.frame_threads = False
                source = self._follow(self._opened.from_start(), 0)
                frame = self._take(source, index)
            position = index
            yield upright(frame)

    def _take(self, source: Followed, index: int) -> Any:
        for position, frame, whole in source:
            if position >= index:
                if position > index or not whole:
                    raise self._lost(index)
                return frame
        if self._opened.broken:
            raise self._lost(index)
        raise IndexMismatchError(f"video {str(self._opened.path)!r} ends before frame {index}")

    def _lost(self, index: int) -> MediaError:
        return damaged(self._opened.path, f"frame {index} cannot be decoded")

    def _seek(self, index: int) -> Followed:
        """Frames from a key frame at or before `index` on; none if the container has no way."""
        assert self.index.stamps is not None
        place = bisect_right(self.index.keys, index) - 1
        for back in _STEPS_BACK[: place + 1]:
            stamp = int(self.index.stamps[self.index.keys[max(place - back, 0)]])
            self._opened.container.seek(stamp, stream=self._opened.stream)
            packets = self._opened.container.demux(self._opened.stream)
            first = next((packet for packet in packets if packet.is_keyframe), None)
            start = None if first is None else self._position(first.pts)
            if first is not None and start is not None and start <= index:
                shown = self._opened.decode(chain([first], packets))
                return self._follow(_from_key(shown, first.pts), start)
        return iter(())

    def _position(self, stamp: int | None) -> int | None:
        """Which frame has this stamp."""
        stamps = self.index.stamps
        if stamp is None or stamps is None:
            return None
        place = int(np.searchsorted(stamps, stamp))
        return place if place < len(stamps) and stamps[place] == stamp else None

    def _follow(self, shown: Shown, first: int) -> Followed:
        """Frames with their indices, compared with the index one by one from `first` on."""
        expected: int | None = first
        for frame, whole in shown:
            position = self._position(frame.pts)
            if whole and (position is None or expected not in (None, position)):
                raise IndexMismatchError(
                    f"video {str(self._opened.path)!r} shows a frame at {frame.time} s "
                    f"where frame {expected} was expected"
                )
            if position is not None:
                yield position, frame, whole
            # Where frames were lost, the next whole one tells how many.
            expected = position + 1 if whole and position is not None else None


def _from_key(shown: Shown, stamp: int) -> Shown:
    """Without the frames that are shown before the key frame: they refer to what was skipped."""
    for frame, whole in shown:
        if frame.pts is None or frame.pts >= stamp:
            # A false key frame leaves its followers without what they refer to.
            real = _is_intra(frame) and frame.pts == stamp
            yield frame, whole and real
            break
    for frame, whole in shown:
        yield frame, whole and real


def _is_intra(frame: Any) -> bool:
    """Whether the decoder agrees that this is a key frame."""
    return bool(frame.key_frame) and int(frame.pict_type) == _INTRA


def upright(frame: Any) -> Frame:
    """As RGB, turned as the file says."""
    turns = int(getattr(frame, "rotation", 0)) // 90
    array: Frame = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return array
