"""Images from disk, within limits."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vlmcompress.errors import MediaError
from vlmcompress.media.bit_depth import (
    colours_to_eight_bits,
    grey_to_eight_bits,
    has_two_bytes,
    is_deep,
)
from vlmcompress.media.regular_files import check_file

_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""Brands of HEIC files."""

MAX_PIXELS = 100_000_000
"""Largest image that `read_image` decodes by default: 300 MB as RGB."""


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as RGB, turned upright as its EXIF data says.

    Transparency is laid on white, and the first frame of an animation is taken. Pictures of 16 bits
    become 8 bits: white is the largest value of 8, 10, 12, 14 or 16 bits, the smallest of these
    that holds the brightest pixel, since 12-bit data are stored in 16 bits without a word; see
    `bit_depth`. HEIC is read where pillow-heif is installed.

    Args:
        path: a regular file.
        max_pixels: width times height that is allowed. It is compared with the header, before
            anything is decoded; Pillow's own limit of `2 * Image.MAX_IMAGE_PIXELS` holds as well.

    Raises:
        MediaError: the file is missing, a folder, empty, no regular file, truncated, not an image,
            too large, or HEIC without pillow-heif.
    """
    file = check_file(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns below the size that it refuses; the limit here is `max_pixels`.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _open(file) as image:
                _check_size(file, image.size, max_pixels)
                deep = has_two_bytes(image)
                image.load()
                known = colours_to_eight_bits(file, image) if deep else image
                return _to_rgb(ImageOps.exif_transpose(known))
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


def _open(file: Path) -> Image.Image:
    """Open a picture; Pillow's list of formats, which belongs to the user, stays as it is."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not _is_heic(file):
            raise
    try:
        from pillow_heif import HeifImageFile
    except (ImportError, OSError):
        raise MediaError(
            f"image {str(file)!r} is HEIC, which Pillow cannot read by itself: "
            "pip install pillow-heif"
        ) from None
    image: Image.Image = HeifImageFile(file)
    return image


def _is_heic(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC


def _check_size(file: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise MediaError(
            f"image {str(file)!r} is too large: {width}x{height} = {width * height} pixels, "
            f"the limit is {max_pixels} pixels; scale it down first"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_deep(image):
        return grey_to_eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
