"""Videos from disk, within limits: a few frames of a clip, with their times."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.choice import AUTO, open_clip
from vlmcompress.media.decoders.clip import Clip, Frame, IndexMismatchError, too_large
from vlmcompress.media.decoders.pyav import PyAVClip
from vlmcompress.media.regular_files import check_file
from vlmcompress.media.video_sampling import (
    DEFAULT_FPS,
    at_times,
    check_sampling,
    is_steady,
    mean_rate,
    spread,
)

__all__ = ["DEFAULT_FPS", "VIDEO_SUFFIXES", "Video", "check_sampling", "read_video"]

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Names by which a command takes a file for a video without being told."""

MAX_FRAMES = 768
MAX_PIXELS = 40_000_000
"""Largest frame by default: 8K."""
MAX_BYTES = 2_000_000_000
"""All frames that are kept, as RGB, by default."""


@dataclass(frozen=True)
class Video:
    """Frames sampled from a clip."""

    frames: npt.NDArray[np.uint8]
    """[frames, H, W, 3] RGB, upright."""
    indices: list[int]
    """Which frames of the clip they are, ascending."""
    times: list[float]
    """Seconds from the clip's first frame at which each of them begins."""
    total: int
    """Frames of the clip."""
    fps: float
    """Mean frames a second of the clip, from its timestamps."""
    steady: bool
    """Whether all frames are shown for the same time."""
    decoder: str

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.total / self.fps

    def metadata(self) -> dict[str, Any]:
        """Arguments of transformers' `VideoMetadata`, which knows times only as index / fps.

        A clip whose frame rate varies is described in milliseconds instead of frames.
        """
        total, fps, indices = self.total, self.fps, self.indices
        if not self.steady:
            total, fps = round(self.duration * 1000), 1000.0
            indices = [round(time * 1000) for time in self.times]
        height, width = self.frames.shape[1:3]
        return {
            "total_num_frames": total,
            "fps": fps,
            "width": width,
            "height": height,
            "duration": self.duration,
            "video_backend": self.decoder,
            "frames_indices": list(indices),
        }

    def describe(self) -> dict[str, Any]:
        """How the clip was read, for JSON: all but the pixels."""
        height, width = self.frames.shape[1:3]
        return {
            "decoder": self.decoder,
            "size": [width, height],
            "fps": round(self.fps, 4),
            "duration": round(self.duration, 4),
            "frames_total": self.total,
            "frame_indices": self.indices,
            "timestamps": self.times,
        }


def read_video(
    path: str | os.PathLike[str],
    frames: int | None = None,
    fps: float | None = None,
    *,
    decoder: str = AUTO,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Video:
    """Sample a clip. Only the sampled frames are ever held, the others are skipped or decoded away.

    What counts as a frame is what a player shows: frames that an edit list hides or that cannot be
    decoded after a cut do not count. PyAV finds them, and decodes as if from the first frame on.
    Where a container has no presentation times (AVI), all of it is decoded to count them.

    Args:
        path: a regular file.
        frames: this many frames spread evenly, the first and the last among them (of a single one:
            the middle); all frames of a clip that has fewer.
        fps: the frames that are shown at 0, 1/fps, 2/fps ... seconds. By default 2 frames a second
            but 8 to 32 of them, spread evenly.
        decoder: "auto", "pyav", "torchcodec" or "decord". "auto" is PyAV, and the others only
            where PyAV lacks the codec. torchcodec and decord decode a clip only if their counts and
            times agree with what PyAV finds, and decord none with open groups of pictures.
        max_frames: most frames that may be kept.
        max_pixels: largest width times height of a frame.
        max_bytes: most memory that the kept frames may take.

    Raises:
        MediaError: the file is missing, a folder, empty, no regular file, truncated, not a video,
            has no frames, or is beyond a limit; a sampled frame cannot be decoded; the decoder is
            unknown, not installed or would give other frames; both `frames` and `fps` are given.
    """
    file = check_file(path, "video")
    check_sampling(frames, fps)
    clip = open_clip(file, decoder, max_pixels)
    limits = (max_frames, max_pixels, max_bytes)
    try:
        return _sample(file, clip, frames, fps, limits)
    except IndexMismatchError:
        if not isinstance(clip, PyAVClip):
            raise
        clip.recount()
        return _sample(file, clip, frames, fps, limits)
    finally:
        if isinstance(clip, PyAVClip):
            clip.close()


def _sample(
    file: Path, clip: Clip, frames: int | None, fps: float | None, limits: tuple[int, int, int]
) -> Video:
    index, total = clip.index, len(clip.index)
    if total == 0:
        why = "nothing in it can be decoded" if index.stamps is None else index.oddity
        why = f": {why}" if why else ""
        raise MediaError(f"video {str(file)!r} has no frames{why}")
    rate = mean_rate(index)
    indices = at_times(index.times, fps, rate) if fps is not None else spread(total, frames, rate)
    max_frames, max_pixels, max_bytes = limits
    if len(indices) > max_frames:
        raise MediaError(
            f"video {str(file)!r}: {len(indices)} of {total} frames are asked for, the limit is "
            f"{max_frames}; give fewer frames or fewer per second"
        )
    kept = np.empty((0,), np.uint8)
    for place, frame in enumerate(clip.frames(indices)):
        if place == 0:
            _check_size(file, frame, len(indices), max_pixels, max_bytes)
            kept = np.empty((len(indices), *frame.shape), np.uint8)
        if frame.shape != kept.shape[1:]:
            raise MediaError(f"video {str(file)!r} changes its frame size, which no model takes")
        kept[place] = frame
    times = index.times[indices].tolist()
    return Video(kept, indices, times, total, rate, is_steady(index.times, rate), clip.name)


def _check_size(file: Path, frame: Frame, count: int, max_pixels: int, max_bytes: int) -> None:
    height, width = frame.shape[:2]
    if height * width > max_pixels:
        raise too_large(file, width, height, max_pixels)
    if frame.nbytes * count > max_bytes:
        raise MediaError(
            f"video {str(file)!r}: {count} frames of {width}x{height} take {frame.nbytes * count} "
            f"bytes, the limit is {max_bytes}; give fewer frames or scale it down first"
        )
