"""Which frames of a clip are taken, from their number and times."""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.clip import FrameIndex

DEFAULT_FPS, FEWEST, MOST = 2.0, 8, 32
"""What is sampled by default: this many frames a second, but at least and at most so many."""

_SLACK = 1e-4
"""Seconds to which timestamps are rounded."""


def check_sampling(frames: int | None, fps: float | None) -> None:
    """Raise a MediaError unless `read_video` can sample so."""
    if frames is not None and fps is not None:
        raise MediaError("a number of frames and frames per second are both given: give one")
    if frames is not None:
        try:
            operator.index(frames)
        except TypeError:
            raise MediaError(f"the number of frames must be an integer, got {frames!r}") from None
        if frames < 1:
            raise MediaError(f"the number of frames must be at least 1, got {frames}")
    if fps is not None:
        try:
            rate = float(fps)
        except (TypeError, ValueError):
            raise MediaError(f"frames per second must be a number, got {fps!r}") from None
        if not 0 < rate < float("inf"):
            raise MediaError(f"frames per second must be above zero, got {rate:g}")


def mean_rate(index: FrameIndex) -> float:
    """Mean frames a second; of a single frame, or of frames without times, what the file says."""
    span = float(index.times[-1])
    return (len(index) - 1) / span if span > 0 else index.rate or 25.0


def is_steady(times: npt.NDArray[np.float64], rate: float) -> bool:
    """Whether all frames are shown for the same time."""
    # Half a frame is more than the rounding of any container.
    return bool((np.abs(times - np.arange(len(times)) / rate) < 0.5 / rate).all())


def spread(total: int, frames: int | None, rate: float) -> list[int]:
    """`frames` indices from the first to the last, halves rounded down; each at most once."""
    if frames is None:
        frames = min(max(round(total / rate * DEFAULT_FPS), FEWEST), MOST)
    if frames >= total:
        return list(range(total))
    if frames == 1:
        return [(total - 1) // 2]
    steps = frames - 1
    return [(2 * k * (total - 1) + steps - 1) // (2 * steps) for k in range(frames)]


def at_times(times: npt.NDArray[np.float64], fps: float, rate: float) -> list[int]:
    """The frames during which some k/fps seconds pass; each at most once."""
    ends = np.append(times[1:], times[-1] + 1 / rate)
    fps = min(fps, 1 / _SLACK)  # beyond it every frame is meant
    chosen = np.ceil((times - _SLACK) * fps) < (ends - _SLACK) * fps
    indices: list[int] = np.flatnonzero(chosen).tolist()
    return indices
