"""Whatever a caller calls a picture or a clip, as pixels: paths, images, arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vlmcompress.errors import MediaError
from vlmcompress.files import at_home
from vlmcompress.files.untrusted import check_file_name, short
from vlmcompress.media.images import read_image
from vlmcompress.media.video import (
    DEFAULT_FPS,
    VIDEO_SUFFIXES,
    Video,
    check_sampling,
    read_video,
)

MediaLike = Any
"""A path, `PIL.Image.Image`, `Video`, array or tensor, or a list of these."""
_ALLOWED = (
    "a path, a PIL image, an array [H, W, 3] (an image) or [frames, H, W, 3] (a clip) of uint8, a "
    "vlmcompress.Video, or a list of these"
)


def media_of(
    given: MediaLike, frames: int | None = None, fps: float | None = None
) -> list[Image.Image | Video]:
    """Images and clips in their order.

    Args:
        given: one of them or a list; see `MediaLike`. A path of a video or an animated GIF is a
            clip; every other path is an image.
        frames: sampled of each clip that is read; see `read_video`.
        fps: frames a second that are sampled of each clip that is read, or that an array of frames
            was sampled with (2 where nothing is said).

    Raises:
        MediaError: it is none of these, cannot be read, or there is nothing; or no clip can be
            sampled so.
    """
    check_sampling(frames, fps)
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    found = [_one(each, frames, fps) for each in (given if several else [given])]
    if not found:
        raise MediaError(f"no picture and no clip was given: give {_ALLOWED}")
    return found


def _one(given: Any, frames: int | None, fps: float | None) -> Image.Image | Video:
    if isinstance(given, Video):
        return given
    if isinstance(given, Image.Image):
        if not given.width * given.height:
            raise MediaError(f"an image of {given.width}x{given.height} pixels shows nothing")
        return ImageOps.exif_transpose(given).convert("RGB")
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        check_file_name(name)
        file = str(at_home(name))
        if kind_of(file) == "video":
            return read_video(file, frames, fps)
        return read_image(file)
    if hasattr(given, "__array__"):
        return _from_pixels(np.asarray(given), fps)
    raise MediaError(f"{short(given)} is no picture and no clip: give {_ALLOWED}")


def kind_of(file: str) -> str:
    """Whether a file is taken for an "image" or a "video", by its name; GIFs by their frames."""
    suffix = Path(file).suffix.lower()
    if suffix == ".gif" and frames_of(file) > 1:
        return "video"
    return "video" if suffix in VIDEO_SUFFIXES else "image"


def frames_of(file: str) -> int:
    """Frames of an animated picture; 1 of any other file, which `read_image` judges."""
    try:
        with Image.open(file) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


def _from_pixels(pixels: npt.NDArray[Any], fps: float | None) -> Image.Image | Video:
    """An image of [H, W, 3] or [H, W], a clip of [frames, H, W, 3]."""
    fits = pixels.shape[-1:] == (3,) and pixels.ndim in (3, 4)
    if pixels.dtype != np.uint8 or not (fits or pixels.ndim == 2) or pixels.size == 0:
        raise MediaError(
            f"an array of shape {list(pixels.shape)} and type {pixels.dtype} is no picture and no "
            f"clip: give {_ALLOWED}"
        )
    if pixels.ndim < 4:
        return Image.fromarray(pixels).convert("RGB")
    rate, count = fps or DEFAULT_FPS, len(pixels)
    times = [number / rate for number in range(count)]
    return Video(
        np.ascontiguousarray(pixels), list(range(count)), times, count, rate, True, "array"
    )
