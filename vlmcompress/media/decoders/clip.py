"""What a decoder of videos is, and which frames a clip has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import MediaError

Frame = npt.NDArray[np.uint8]
"""[H, W, 3] RGB."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames that a player shows, in the order in which it shows them."""

    times: npt.NDArray[np.float64]
    """[N] seconds from the first frame at which each begins, ascending."""
    rate: float | None
    """Frames per second as the file declares it."""
    stamps: npt.NDArray[np.int64] | None
    """[N] presentation stamps, ascending, in the stream's own unit; None where the file has none to
    go by and the nth frame is found by counting."""
    keys: npt.NDArray[np.int64]
    """Ascending indices of the frames at which decoding may begin."""
    oddity: str | None = None
    """Why a decoder that goes by the container's table would be misled."""
    open_groups: bool = False
    """Whether frames that come after a key frame in the file are shown before it."""

    def __len__(self) -> int:
        return len(self.times)

    def key_before(self, index: int) -> int:
        """Index of the last key frame up to `index`, 0 where there is none."""
        place = bisect_right(self.keys, index)
        return int(self.keys[place - 1]) if place else 0


class Clip(Protocol):
    """An open video file."""

    name: str
    """Of the decoder."""
    index: FrameIndex

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames with these ascending indices, one by one, upright.

        Raises:
            MediaError: one of them cannot be decoded.
            IndexMismatchError: the file shows other frames than the index says.
        """
        ...


class IndexMismatchError(MediaError):
    """Decoding shows other frames than the index says."""


def damaged(file: Path, why: str) -> MediaError:
    """The error for a file that ends early or holds rubbish."""
    return MediaError(f"video {str(file)!r} is truncated or damaged: {why}")


def disagrees(file: Path, decoder: str, why: str) -> MediaError:
    """The error where a decoder would give other frames than those that are shown."""
    return MediaError(
        f"video {str(file)!r} is not read rightly by {decoder}: {why}; "
        "leave the decoder to 'auto', or take 'pyav'"
    )


def compare_times(
    file: Path, decoder: str, index: FrameIndex, wanted: Sequence[int], times: npt.ArrayLike
) -> None:
    """Raise unless a decoder gives these frames the times of the index, to a millisecond.

    Raises:
        MediaError: it does not.
    """
    told = np.asarray(times, np.float64)
    off = np.abs(told - index.times[list(wanted)])
    if len(off) and not off.max() < 1e-3:
        worst = int(np.argmax(off))
        raise disagrees(
            file,
            decoder,
            f"it shows frame {wanted[worst]} at {told[worst]:.3f} s "
            f"instead of {index.times[wanted[worst]]:.3f} s",
        )


def too_large(file: Path, width: int, height: int, limit: int) -> MediaError:
    """The error for frames with more than `limit` pixels."""
    return MediaError(
        f"video {str(file)!r} is too large: {width}x{height} = {height * width} "
        f"pixels a frame, the limit is {limit}; scale it down first"
    )
