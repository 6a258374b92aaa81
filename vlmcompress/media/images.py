"""Images from disk, within limits."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlmcompress.errors import MediaError
from vlmcompress.media.regular_files import check_file

MAX_PIXELS = 100_000_000
"""Largest image that `read_image` decodes by default: 300 MB as RGB."""


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as RGB, turned upright as its EXIF data says.

    Transparency is laid on white, 16-bit and float greyscale is scaled to 8 bits, and the first
    frame of an animation is taken.

    Args:
        path: the file.
        max_pixels: width times height that is allowed. It is compared with the header, before
            anything is decoded; Pillow's own limit of `2 * Image.MAX_IMAGE_PIXELS` holds as well.

    Raises:
        MediaError: the file is missing, a folder, empty, truncated, not an image, or too large.
    """
    file = Path(path)
    check_file(file)
    try:
        with warnings.catch_warnings():
            # Pillow warns below the size that it refuses; the limit here is `max_pixels`.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                _check_size(file, image.size, max_pixels)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(f"file {str(file)!r} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise MediaError(
            f"image {str(file)!r} is too large: the limit is {limit} pixels; scale it down first"
        ) from error
    except PermissionError as error:
        raise MediaError(f"image {str(file)!r} may not be read: permission denied") from error
    # On a damaged file Pillow's decoders raise anything from OSError to struct.error.
    except Exception as error:
        raise MediaError(f"image {str(file)!r} is truncated or damaged: {error}") from error


def _check_size(file: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise MediaError(
            f"image {str(file)!r} is too large: {width}x{height} = {width * height} pixels, "
            f"the limit is {max_pixels} pixels; scale it down first"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits (or of floats up to 1) as 8 bits; brighter values set the scale."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    full = max(1.0 if image.mode == "F" else 65535.0, float(values.max()))
    return Image.fromarray((values.clip(0) * (255.0 / full)).round().astype(np.uint8))
