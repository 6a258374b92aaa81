"""A video file as PyAV opens and decodes it: every shown frame in order, and what was lost."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.clip import damaged, too_large
from vlmcompress.media.decoders.mp4_claims import impossible_claim

_ATTACHED_PICTURE = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC."""

_NO_STAMPS = 0x80
"""FFmpeg's AVFMT_NOTIMESTAMPS."""

_BAD_FILE = (UnicodeError, OverflowError, LookupError, MemoryError, OSError)
"""What PyAV's own code raises on tags in other encodings, numbers out of range, streams that appear
in the middle, and sizes that no memory holds."""

Shown = Iterator[tuple[Any, bool]]
"""Frames as they are shown, each with whether it and what it is made of were decoded whole."""


class PyAVFile:
    """An opened file and its first moving picture."""

    container: Any = None
    """PyAV's, replaced whenever decoding begins anew; so is `stream`."""

    def __init__(self, av: ModuleType, file: Path, max_pixels: int) -> None:
        """Open `file`; nothing is decoded.

        Raises:
            MediaError: it cannot be opened, is an image, has no video stream, or is too large.
        """
        self._av, self.path = av, file
        self._handle: io.FileIO | None = None
        self.doubted: set[int | None] = set()
        """Stamps of the packets that the container calls corrupt."""
        self.frame_threads = False
        """Whether frames are decoded side by side: faster, but what a decoder then puts in the
        place of missing data differs from run to run."""
        self.broken = False
        """Whether something could not be decoded since the start."""
        with self.reading(f"file {str(file)!r} is truncated, damaged or not a video"):
            claim = impossible_claim(file)
            if claim is not None:
                raise damaged(file, claim)
            self._open()
        if str(self.container.format.name).endswith(("_pipe", "image2")):
            raise MediaError(f"file {str(file)!r} is an image, not a video: give it with --image")
        context = self.stream.codec_context
        self.decodes = context is not None
        """Whether this build of FFmpeg has a decoder for the stream."""
        if self.decodes and context.width * context.height > max_pixels:
            raise too_large(file, context.width, context.height, max_pixels)

    @contextmanager
    def reading(self, what: str = "") -> Iterator[None]:
        """Turn what PyAV raises on bad files into one line."""
        try:
            yield
        except (self._av.FFmpegError, *_BAD_FILE) as error:
            told = str(getattr(error, "strerror", None) or error).splitlines()
            why = told[0] if told else type(error).__name__
            raise (MediaError(f"{what}: {why}") if what else damaged(self.path, why)) from error

    @property
    def has_no_stamps(self) -> bool:
        """Whether the container does not say when a frame is shown.

        AVI and bare streams do not: FFmpeg invents presentation stamps, and gets them wrong where
        frames are stored in another order than they are shown.
        """
        kind = self.container.format
        return bool(int(kind.flags) & _NO_STAMPS) or kind.name == "avi"

    @property
    def rate(self) -> float | None:
        """Frames a second as the file declares it."""
        return float(self.stream.average_rate or 0) or None

    def close(self) -> None:
        """Give the file back; `index` stays."""
        if self.container is not None:
            self.container.close()
        if self._handle is not None:
            self._handle.close()

    def _open(self) -> None:
        self.close()
        self._handle = io.FileIO(self.path)
        # An opened file, so that no name is taken for a protocol; and no protocols, so that a
        # playlist under the name of a video opens nothing else.
        self.container = self._av.open(
            self._handle,
            metadata_errors="ignore",
            container_options={"protocol_whitelist": "none"},
        )
        self.stream: Any = next(filter(_moves, self.container.streams.video), None)
        if self.stream is None:
            raise MediaError(
                f"file {str(self.path)!r} has no frames to show: no video stream in it"
            )
        if self.stream.codec_context is not None:
            self.stream.thread_type = "AUTO" if self.frame_threads else "NONE"

    def from_start(self) -> Shown:
        """All frames; opened anew, since not every container can seek to its first packet."""
        self._open()
        self.broken = False
        return self.decode(self.container.demux(self.stream))

    def decode(self, packets: Iterable[Any]) -> Shown:
        """Decode on over packets that cannot be; what follows is not whole up to a key frame."""
        broken = doubted = False
        fresh: set[int | None] = set()  # stamps of the key frames read since something broke
        for packet in packets:
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                self.broken = broken = True
                fresh.clear()
                continue
            if broken and packet.is_keyframe:
                fresh.add(packet.pts)
            for frame in frames:
                if frame.key_frame:
                    doubted = False
                    # One that is shown only now may have been read before, and what follows it not.
                    broken = broken and frame.pts not in fresh
                # A container's doubt is passed on to the frame; a decoder's own weighs more.
                doubted = doubted or (frame.is_corrupt and frame.pts not in self.doubted)
                yield frame, not (broken or doubted)


def _moves(stream: Any) -> bool:
    """Whether a stream is a video and no cover picture of a song."""
    disposition = getattr(stream, "disposition", 0)
    return not int(getattr(disposition, "value", disposition)) & _ATTACHED_PICTURE
