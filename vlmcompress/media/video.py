"""Videos from disk, within limits: a few frames of a clip, with their times."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import MediaError
from vlmcompress.media.images import check_file
from vlmcompress.media.video_decoders import Clip, Frame, installed, open_clip

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Names by which a command takes a file for a video without being told."""

DEFAULT_FPS, FEWEST, MOST = 2.0, 8, 32
"""What is sampled by default: this many frames a second, but at least and at most so many."""

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
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Video:
    """Sample a clip. Only the sampled frames are ever held, the others are skipped or decoded away.

    decord decodes where it is installed and the container is one that it seeks in exactly, else
    PyAV; `Video.decoder` says which.

    Args:
        path: the file.
        frames: this many frames spread evenly, the first and the last among them (of a single one:
            the middle); all frames of a clip that has fewer.
        fps: the frames that are shown at 0, 1/fps, 2/fps ... seconds. By default 2 frames a second
            but 8 to 32 of them, spread evenly.
        max_frames: most frames that may be kept.
        max_pixels: largest width times height of a frame.
        max_bytes: most memory that the kept frames may take.

    Raises:
        MediaError: the file is missing, a folder, empty, truncated, not a video, has no frames, is
            beyond a limit, or no decoder is installed; or both `frames` and `fps` are given.
    """
    file = Path(path)
    check_file(file, "video")
    check_sampling(frames, fps)
    decoders = installed()
    if not decoders:
        raise MediaError(
            f"video {str(file)!r} cannot be read: neither decord nor PyAV is installed: "
            'pip install "vlmcompress[video]"'
        )
    for last, (name, module) in enumerate(decoders.items(), start=1):
        try:
            clip = open_clip(name, module, file)
            return _sample(file, clip, name, frames, fps, (max_frames, max_pixels, max_bytes))
        except MediaError:
            if last == len(decoders):
                raise  # the next decoder may read what this one cannot
    raise AssertionError


def check_sampling(frames: int | None, fps: float | None) -> None:
    """Raise a MediaError unless `read_video` can sample so."""
    if frames is not None and fps is not None:
        raise MediaError("a number of frames and frames per second are both given: give one")
    if frames is not None and frames < 1:
        raise MediaError(f"the number of frames must be at least 1, got {frames}")
    if fps is not None and not 0 < fps < float("inf"):
        raise MediaError(f"frames per second must be above zero, got {fps:g}")


def _sample(
    file: Path,
    clip: Clip,
    decoder: str,
    frames: int | None,
    fps: float | None,
    limits: tuple[int, int, int],
) -> Video:
    total = len(clip.times)
    if total == 0:
        raise MediaError(f"video {str(file)!r} has no frames")
    rate = _rate(clip)
    indices = _at_times(clip.times, fps, rate) if fps is not None else _spread(total, frames, rate)
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
    times = [clip.times[index] for index in indices]
    # Half a frame is more than the rounding of any container.
    steady = all(abs(time - k / rate) < 0.5 / rate for k, time in enumerate(clip.times))
    return Video(kept, indices, times, total, rate, steady, decoder)


def _check_size(file: Path, frame: Frame, count: int, max_pixels: int, max_bytes: int) -> None:
    height, width = frame.shape[:2]
    if height * width > max_pixels:
        raise MediaError(
            f"video {str(file)!r} is too large: {width}x{height} = {height * width} "
            f"pixels a frame, the limit is {max_pixels}; scale it down first"
        )
    if frame.nbytes * count > max_bytes:
        raise MediaError(
            f"video {str(file)!r}: {count} frames of {width}x{height} take {frame.nbytes * count} "
            f"bytes, the limit is {max_bytes}; give fewer frames or scale it down first"
        )


def _rate(clip: Clip) -> float:
    """Mean frames a second; of a single frame, or of frames without times, what the file says."""
    span = clip.times[-1]
    return (len(clip.times) - 1) / span if span > 0 else clip.rate or 25.0


def _spread(total: int, frames: int | None, rate: float) -> list[int]:
    """`frames` indices from the first to the last, halves rounded down; each at most once."""
    if frames is None:
        frames = min(max(round(total / rate * DEFAULT_FPS), FEWEST), MOST)
    if frames >= total:
        return list(range(total))
    if frames == 1:
        return [(total - 1) // 2]
    steps = frames - 1
    return [(2 * k * (total - 1) + steps - 1) // (2 * steps) for k in range(frames)]


def _at_times(times: list[float], fps: float, rate: float) -> list[int]:
    """The frames during which some k/fps seconds pass; each at most once."""
    slack = 1e-4  # to which timestamps are rounded
    ends = [*times[1:], times[-1] + 1 / rate]
    return [
        index
        for index, (start, end) in enumerate(zip(times, ends, strict=True))
        if math.ceil((start - slack) * fps) < (end - slack) * fps
    ]
