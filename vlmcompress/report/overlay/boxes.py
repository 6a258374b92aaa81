"""Where the patches of an image lie on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmcompress.errors import VLMCompressError


class Box(NamedTuple):
    """A rectangle in pixels of the image as it was read; it may reach beyond the image."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether it holds nearly all of an image."""
        width, height = (
            max(0.0, min(far, length) - max(near, 0.0))
            for near, far, length in zip(self[:2], self[2:], size, strict=True)
        )
        return width * height > _NEARLY * size[0] * size[1]


_NEARLY = 0.9


def part_boxes(size: tuple[int, int], processor: Any, parts: int) -> list[Box]:
    """Where each grid of an image lies: one that is laid out as tiles has several.

    Families that join their tiles again (LLaVA-NeXT) show the whole image twice. For the others the
    processor itself is asked: it cuts up a picture whose colours tell the place of each pixel.

    Args:
        size: width and height of the image.
        processor: the model's processor.
        parts: how many grids there are.

    Raises:
        VLMCompressError: it cuts the image into another number of tiles.
    """
    settings = getattr(processor, "image_processor", processor)
    if parts == 1:
        return [visible_box(size, processor)]
    if parts == 2 and hasattr(settings, "image_grid_pinpoints"):
        return [Box(0, 0, *size)] * 2
    tiles = [_cut(picture, processor) for picture in _told_apart(size)]
    if len(tiles[0]) != parts:
        raise VLMCompressError(
            f"an overlay cannot tell where the {parts} parts of an image lie: "
            f"{type(processor).__name__} cuts it into {len(tiles[0])} tiles"
        )
    return [_box_of(size, *tile) for tile in zip(*tiles, strict=True)]


def _told_apart(size: tuple[int, int]) -> list[Image.Image]:
    """Black, white, and a picture with the column in red and the row in green."""
    width, height = size
    places = np.zeros((height, width, 3))
    places[..., 0] = (np.arange(width) + 0.5) / width
    places[..., 1] = (np.arange(height)[:, None] + 0.5) / height
    pictures = np.zeros_like(places), np.ones_like(places), places
    return [Image.fromarray((255 * one).round().astype(np.uint8)) for one in pictures]


def _cut(picture: Image.Image, processor: Any) -> npt.NDArray[np.float64]:
    """[tiles, 3, H, W]: what the processor makes of a picture."""
    token = getattr(processor, "image_token", None)
    if token is None:
        settings = getattr(processor, "image_processor", processor)
        found = settings(images=[picture], return_tensors="np")
    else:
        found = processor(text=[str(token)], images=[[picture]], return_tensors="pt")
    made = found["pixel_values"]
    # Llama 4's are of a type that numpy does not have.
    pixels = np.asarray(made.float() if hasattr(made, "float") else made, dtype=np.float64)
    if pixels.ndim < 4 or pixels.shape[-3] != 3:
        raise VLMCompressError(
            f"an overlay cannot tell where the tiles of an image lie: {type(processor).__name__} "
            f"gives pixels of shape {list(pixels.shape)}"
        )
    return pixels.reshape(-1, *pixels.shape[-3:])


def _box_of(
    size: tuple[int, int],
    black: npt.NDArray[np.float64],
    white: npt.NDArray[np.float64],
    places: npt.NDArray[np.float64],
) -> Box:
    """Where a tile [3, H, W] lies, from what it shows of the three pictures."""
    seen = white - black
    with np.errstate(invalid="ignore", divide="ignore"):
        # Padding shows none of them: it is the same in black and in white.
        shares = np.where(np.abs(seen) > 1e-6, (places - black) / seen, np.nan)
    (left, right), (top, bottom) = (
        _ends(shares[channel], axis, length)
        for channel, axis, length in ((0, 0, size[0]), (1, 1, size[1]))
    )
    return Box(left, top, right, bottom)


def _ends(shares: npt.NDArray[np.float64], axis: int, length: int) -> tuple[float, float]:
    """Where the first and the last pixel of a tile begin and end along one side of the image."""
    known = np.isfinite(shares)
    counts = known.sum(axis)
    means = np.where(known, shares, 0.0).sum(axis) / np.maximum(counts, 1)
    at = np.flatnonzero(counts)
    if len(at) < 2:
        return 0.0, float(length)
    slope, start = np.polyfit(at, means[at], 1)
    first, last = -0.5, len(means) - 0.5
    return float(length * (start + slope * first)), float(length * (start + slope * last))


def visible_box(size: tuple[int, int], processor: Any) -> Box:
    """The part of an image that the patch grid covers.

    Follows what a CLIP or LLaVA image processor does, in its order: pad to a square, resize, crop
    the centre. A processor without these settings is taken to show the whole image.

    Args:
        size: width and height of the image.
        processor: the model's processor, or its image processor or video processor.
    """
    settings = getattr(processor, "image_processor", processor)
    width, height = size
    pad_x = pad_y = 0
    if getattr(settings, "do_pad", False) and hasattr(settings, "pad_to_square"):
        side = max(size)
        pad_x, pad_y = (side - width) // 2, (side - height) // 2
        width = height = side
    resized_width, resized_height = _resized(width, height, settings)
    left = top = 0
    shown_width, shown_height = resized_width, resized_height
    if getattr(settings, "do_center_crop", False):
        crop = settings.crop_size
        shown_width, shown_height = int(crop["width"]), int(crop["height"])
        left = (resized_width - shown_width) // 2
        top = (resized_height - shown_height) // 2
    x, y = width / resized_width, height / resized_height
    return Box(
        left * x - pad_x,
        top * y - pad_y,
        (left + shown_width) * x - pad_x,
        (top + shown_height) * y - pad_y,
    )


def _resized(width: int, height: int, settings: Any) -> tuple[int, int]:
    size = getattr(settings, "size", None)
    if not getattr(settings, "do_resize", False) or size is None:
        return width, height
    edge, fixed_width, fixed_height = (
        _get(size, key) for key in ("shortest_edge", "width", "height")
    )
    if edge:
        # transformers cuts the longer side down to an integer, it does not round.
        if width <= height:
            return edge, int(edge * height / width)
        return int(edge * width / height), edge
    if fixed_width and fixed_height:
        return fixed_width, fixed_height
    return width, height


def _get(size: Any, key: str) -> int | None:
    value = size.get(key) if hasattr(size, "get") else getattr(size, key, None)
    return None if value is None else int(value)
