"""Two decoders of video files with one interface: decord and PyAV.

Both say when every frame is shown without decoding it, and decode only the frames that are asked
for. decord reads only containers where its seeking was found exact: in MPEG transport streams it
returns wrong frames, and it cannot open animations.
"""

from __future__ import annotations

import importlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import MediaError

Frame = npt.NDArray[np.uint8]
"""[H, W, 3] RGB."""

DECODERS = {"decord": "decord", "PyAV": "av"}
"""Name of a decoder -> the module that it needs; in the order in which they are tried."""

_ATTACHED_PICTURE = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC."""


class Clip(Protocol):
    """An open video file."""

    times: list[float]
    """Seconds from the first frame at which each frame begins, ascending."""
    rate: float | None
    """Frames per second as the file declares it."""

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames with these ascending indices, one by one, upright."""
        ...


def installed() -> dict[str, ModuleType]:
    """The decoders that can be imported, the preferred one first."""
    found = {}
    for name, module in DECODERS.items():
        try:
            found[name] = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError):
            continue  # not installed, or its shared libraries do not load on this machine
    return found


def open_clip(name: str, module: ModuleType, file: Path) -> Clip:
    """Open `file` with the decoder `name`.

    Raises:
        MediaError: it has no video stream, is damaged, or this decoder does not read it.
    """
    return DecordClip(module, file) if name == "decord" else PyAVClip(module, file)


def _damaged(file: Path, why: str) -> MediaError:
    return MediaError(f"video {str(file)!r} is truncated or damaged: {why}")


class DecordClip:
    """A file opened by decord."""

    def __init__(self, decord: ModuleType, file: Path) -> None:
        self._file = file
        if not _decord_reads(file):
            raise MediaError(
                f"video {str(file)!r} is neither MP4, Matroska, WebM nor AVI, "
                'which is all that decord reads reliably: pip install "vlmcompress[video]"'
            )
        try:
            self._reader: Any = decord.VideoReader(str(file))
            spans = np.asarray(self._reader.get_frame_timestamp(range(len(self._reader))), float)
            self.rate: float | None = float(self._reader.get_avg_fps()) or None
        # decord raises its own error and RuntimeError, with C++ traces for messages.
        except Exception as error:
            if "cannot find video stream" in str(error):
                raise _no_stream(file) from error
            raise _damaged(file, "decord cannot open it") from error
        self.times = _from_zero(spans[:, 0].tolist())

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            try:
                frame = self._reader[index]
            except Exception as error:
                raise _damaged(self._file, f"frame {index} cannot be decoded") from error
            # A user may have set one of decord's bridges, which hand out tensors.
            array = frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
            height, width = array.shape[:2]
            # Rows of rotated or very small frames come with their padding as further channels.
            rows = array.reshape(height, -1)[:, : 3 * width]
            yield np.ascontiguousarray(rows, dtype=np.uint8).reshape(height, width, 3)


def _decord_reads(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError as error:
        raise MediaError(f"video {str(file)!r} cannot be opened: {error.strerror}") from error
    mp4, matroska = head[4:8] == b"ftyp", head[:4] == b"\x1aE\xdf\xa3"
    return mp4 or matroska or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


class PyAVClip:
    """A file opened by PyAV."""

    def __init__(self, av: ModuleType, file: Path) -> None:
        self._av, self._file = av, file
        try:
            self._container: Any = av.open(str(file))
        except av.FFmpegError as error:
            raise MediaError(
                f"file {str(file)!r} is truncated, damaged or not a video: {_reason(error)}"
            ) from error
        if str(self._container.format.name).endswith(("_pipe", "image2")):
            raise MediaError(f"file {str(file)!r} is an image, not a video: give it with --image")
        self._stream: Any = next(filter(_moves, self._container.streams.video), None)
        if self._stream is None:
            raise _no_stream(file)
        self.rate: float | None = float(self._stream.average_rate or 0) or None
        stamps, self._keys = self._index()
        base = self._stream.time_base
        self._exact = None not in stamps and len(set(stamps)) == len(stamps)
        self._stamps: list[int] = sorted(stamps) if self._exact else list(range(len(stamps)))
        step = base if self._exact else 1 / (self.rate or 25)
        self.times = _from_zero([float(stamp * step) for stamp in self._stamps])

    def _index(self) -> tuple[list[Any], list[int]]:
        """Timestamps of all frames and, ascending, of the key frames; nothing is decoded."""
        stamps: list[Any] = []
        keys: list[int] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    raise _damaged(self._file, f"it ends inside frame {len(stamps)}")
                if packet.size and not packet.is_discard:
                    stamps.append(packet.pts)
                    if packet.is_keyframe and packet.pts is not None:
                        keys.append(packet.pts)
        except self._av.FFmpegError as error:
            raise _damaged(self._file, _reason(error)) from error
        return stamps, sorted(keys)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        try:
            source = self._restart()
            position, seeks = -1, self._exact
            for index in indices:
                key = self._key_before(index) if seeks else 0
                # Decoding on is cheaper than seeking, unless a key frame lies in between.
                if key > max(position, 0):
                    source = self._seek(key)
                found = self._until(source, index)
                if found is None and key > 0:
                    # This container's seeking goes too far: decode all that lies in between.
                    seeks, source = False, self._restart()
                    found = self._until(source, index)
                if found is None:
                    raise _damaged(self._file, f"frame {index} cannot be decoded")
                position = index
                yield _upright(found)
        except self._av.FFmpegError as error:
            raise _damaged(self._file, _reason(error)) from error

    def _key_before(self, index: int) -> int:
        """Index of the last key frame up to `index`, 0 where there is none."""
        place = bisect_right(self._keys, self._stamps[index])
        if place == 0:
            return 0
        return bisect_right(self._stamps, self._keys[place - 1]) - 1

    def _seek(self, index: int) -> Iterator[tuple[int, Any]]:
        """Decode from a key frame on: stamps and frames."""
        self._container.seek(self._stamps[index], stream=self._stream)
        return ((frame.pts, frame) for frame in self._container.decode(self._stream))

    def _restart(self) -> Iterator[tuple[int, Any]]:
        """Decode from the very first frame on, which not every container can seek to."""
        self._container.close()
        self._container = self._av.open(str(self._file))
        self._stream = next(filter(_moves, self._container.streams.video))
        self._stream.thread_type = "AUTO"
        decoded = self._container.decode(self._stream)
        return ((f.pts, f) for f in decoded) if self._exact else enumerate(decoded)

    def _until(self, source: Iterator[tuple[int, Any]], index: int) -> Any:
        """The frame `index` if `source` comes to it, else None."""
        for stamp, frame in source:
            if stamp is None or stamp >= self._stamps[index]:
                return frame if stamp == self._stamps[index] else None
        return None


def _moves(stream: Any) -> bool:
    """Whether a stream is a video and no cover picture of a song."""
    disposition = getattr(stream, "disposition", 0)
    return not int(getattr(disposition, "value", disposition)) & _ATTACHED_PICTURE


def _upright(frame: Any) -> Frame:
    """As RGB, turned as the file says."""
    turns = int(getattr(frame, "rotation", 0)) // 90
    array: Frame = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return array


def _no_stream(file: Path) -> MediaError:
    return MediaError(f"file {str(file)!r} has no frames to show: no video stream in it")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _from_zero(times: Sequence[float]) -> list[float]:
    return [round(time - times[0], 4) for time in times]
