"""Which frames a file shows, from its packets where they say so, else by decoding all of it.

Not every packet is a picture that is shown: an edit list discards what a cut has left over, VP8
hides pictures that only others refer to, and AVI does not say when anything is shown.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.clip import FrameIndex, damaged
from vlmcompress.media.decoders.pyav_file import PyAVFile

MOST_FRAMES = 10_000_000
"""Frames beyond which a clip is refused: four days at 30 a second, and 160 MB of index."""

_DEFAULT_RATE = 25.0


_UNKNOWN = -(2**63)
"""FFmpeg's AV_NOPTS_VALUE."""


def make_index(opened: PyAVFile) -> FrameIndex:
    """Which frames a file shows. Its packets are read; they are decoded only where they must be.

    Raises:
        MediaError: the file is damaged, ends early, or holds over `MOST_FRAMES` frames.
    """
    unit, claimed = float(opened.stream.time_base), opened.stream.frames
    with opened.reading():
        found = _read_packets(opened)
        opened.doubted = found.corrupt
        if found.ends_corrupt and found.count < claimed:
            raise damaged(opened.path, f"it ends inside frame {found.count - 1} of {claimed}")
        if found.count and not _go_by_stamps(found, opened):
            slots = found.slots if opened.has_no_stamps else None
            why = "its frames are found by counting, for want of timestamps"
            return count_frames(opened, why, slots)
        if found.count and not found.clean_start and opened.decodes:
            found.stamps = _shown_at_the_start(found, opened)
    opened.frame_threads = True
    stamps = np.sort(np.asarray(found.stamps, np.int64))
    keys = np.searchsorted(stamps, np.sort(np.asarray(found.keys, np.int64)))
    times = (stamps - stamps[:1]) * unit
    return FrameIndex(
        times.round(4), opened.rate, stamps, keys, _oddity(found, opened), found.open_groups
    )


def count_frames(opened: PyAVFile, why: str, slots: array[int] | None = None) -> FrameIndex:
    """The index of a file that is decoded from end to end; nothing is kept of its frames.

    Args:
        opened: the file.
        why: for `FrameIndex.oddity`.
        slots: decoding stamps, where they and the rate are all that tells when a frame is shown.

    Raises:
        MediaError: the file is damaged, holds over `MOST_FRAMES` frames or cannot be decoded.
    """
    if not opened.decodes:
        raise MediaError(f"video {str(opened.path)!r} is in a codec that PyAV cannot decode")
    opened.frame_threads = False
    stamps = array("q")
    with opened.reading():
        for frame, _ in opened.from_start():
            stamps.append(_UNKNOWN if frame.pts is None else frame.pts)
            _check_count(len(stamps), opened)
    shown = np.asarray(stamps, np.int64)
    if slots is not None:
        # One frame is shown in each slot, in whatever order they are stored.
        shown = np.sort(slots) if len(slots) == len(stamps) else np.full_like(shown, _UNKNOWN)
    unit, rate = float(opened.stream.time_base), opened.rate
    times = _ascending(shown, unit, 1 / (rate or _DEFAULT_RATE))
    return FrameIndex(times, rate, None, np.zeros(0, np.int64), why)


@dataclass
class Packets:
    """What the packets of a stream say, in the order of the file; nothing is decoded."""

    count: int = 0
    """All that hold data, the discarded ones among them."""
    discarded: int = 0
    stamps: array[int] = field(default_factory=lambda: array("q"))
    """Of those that are shown."""
    slots: array[int] = field(default_factory=lambda: array("q"))
    """Decoding stamps: in a file without presentation stamps, when something new is shown."""
    keys: array[int] = field(default_factory=lambda: array("q"))
    """Stamps of the shown key frames."""
    corrupt: set[int | None] = field(default_factory=set)
    """Stamps of the packets that the container doubts."""
    ends_corrupt: bool = False
    without_stamp: bool = False
    open_groups: bool = False
    clean_start: bool = True
    """Whether the first packet is a key frame and nothing is shown before it."""


def _read_packets(opened: PyAVFile) -> Packets:
    hides = opened.decodes and opened.stream.codec_context.name == "vp8"
    found = Packets()
    first = key = None
    for packet in opened.container.demux(opened.stream):
        # FFmpeg's own sign for the end, or a frame that an AVI file repeats: nothing to decode.
        if not packet.size:
            continue
        stamp = packet.pts
        found.slots.append(_UNKNOWN if packet.dts is None else packet.dts)
        if found.count == 0:
            first, found.clean_start = stamp, packet.is_keyframe
        found.count += 1
        _check_count(found.count, opened)
        found.ends_corrupt = packet.is_corrupt
        if packet.is_corrupt:
            found.corrupt.add(stamp)
        if stamp is None:
            found.without_stamp = True
            continue
        if packet.is_keyframe:
            key = stamp
        elif key is not None and stamp < key:
            found.open_groups = True
        if first is not None and stamp < first:
            found.clean_start = False
        if packet.is_discard:
            found.discarded += 1
        elif not (hides and _is_hidden(packet)):
            found.stamps.append(stamp)
            if packet.is_keyframe:
                found.keys.append(stamp)
    return found


def _is_hidden(packet: Any) -> bool:
    """Whether a VP8 frame says of itself that it is not to be shown (RFC 6386, section 9.1)."""
    return not memoryview(packet)[0] & 0x10


def _go_by_stamps(found: Packets, opened: PyAVFile) -> bool:
    """Whether the stamps of the packets are those of the file, and name each frame once."""
    if opened.has_no_stamps:
        return False
    distinct = len(np.unique(np.asarray(found.stamps))) == len(found.stamps)
    return distinct and not found.without_stamp and not found.corrupt


def _shown_at_the_start(found: Packets, opened: PyAVFile) -> array[int]:
    """The stamps of `found` without the frames before the first key frame that are not shown.

    A cut in an open group leaves frames that refer to others before the cut.
    """
    key = min(found.keys, default=None)
    shown = set()
    for frame, _ in opened.from_start():
        if frame.pts is not None and key is not None and frame.pts >= key:
            break
        shown.add(frame.pts)
    return array("q", (s for s in found.stamps if s in shown or (key is not None and s >= key)))


def _oddity(found: Packets, opened: PyAVFile) -> str | None:
    """See `FrameIndex.oddity`."""
    claimed, shown = opened.stream.frames, len(found.stamps)
    if found.discarded:
        return f"{found.discarded} of {found.count} stored frames are not shown"
    if claimed not in (0, found.count):
        return f"it claims {claimed} frames and has {found.count}"
    if shown != found.count:
        return f"{found.count - shown} of {found.count} frames are not shown"
    return None


def _check_count(count: int, opened: PyAVFile) -> None:
    if count > MOST_FRAMES:
        raise MediaError(f"video {str(opened.path)!r} has over {MOST_FRAMES} frames: cut it first")


def _ascending(stamps: npt.NDArray[np.int64], unit: float, step: float) -> npt.NDArray[np.float64]:
    """Seconds from 0 on; where a stamp is missing or does not ascend, one step after the last."""
    before, after = stamps[:-1], stamps[1:]
    known = (before != _UNKNOWN) & (after > before)
    gaps = np.where(known, (after - before) * unit, step)
    times: npt.NDArray[np.float64] = np.zeros(len(stamps))
    times[1:] = gaps.cumsum().round(4)
    return times
