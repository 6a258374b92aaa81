"""Pictures of more than 8 bits as 8 bits.

Cameras and scanners store 10, 12 or 14 bits in the lower part of 16 without saying so, and read as
16 bits such a picture is black. So white is the largest value of the smallest usual depth (8, 10,
12, 14 or 16 bits) that holds the brightest pixel. A 16-bit picture whose brightest pixel is below a
quarter of white is brightened by this rule, up to 256 times; nothing in the file tells the two
apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_DEPTHS = (8, 10, 12, 14, 16)
_HIGH, _LOW = ";16B", ";16L"
"""Pillow's names for samples of two bytes, the high or the low one first; it takes the high one."""


def is_deep(image: Image.Image) -> bool:
    """Whether it is greyscale of more than 8 bits, or of floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def grey_to_eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits, or of floats up to 1, as mode "L"; negative values are 0."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    brightest = float(values.max(initial=0.0))
    white = max(1.0, brightest) if image.mode == "F" else _white(brightest)
    return Image.fromarray(_scaled(values, white))


def has_two_bytes(image: Image.Image) -> bool:
    """Whether it is a PNG of 16-bit colours; to be asked before it is loaded."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
        return False
    return any(_HIGH in str(tile[3]) for tile in getattr(image, "tile", ()))


def colours_to_eight_bits(file: Path, high: Image.Image) -> Image.Image:
    """A PNG of 16-bit colours as 8 bits.

    Args:
        file: the PNG.
        high: what Pillow makes of it, the higher byte of each sample.

    Returns:
        `high` itself where 16 bits are used; else the colours scaled, alpha as it was.
    """
    upper = np.asarray(high)
    if int(upper[..., :3].max(initial=0)) >= 1 << _DEPTHS[-2] - 8:
        return high
    with Image.open(file) as low:
        # Read the other way round, the byte that Pillow takes for the high one is the low one.
        tiles = low.tile
        low.tile = [tile._replace(args=tile.args.replace(_HIGH, _LOW)) for tile in tiles]
        values = upper.astype(np.float64) * 256 + np.asarray(low)
    pixels = upper.copy()
    white = _white(float(values[..., :3].max(initial=0)))
    pixels[..., :3] = _scaled(values[..., :3], white)
    scaled = Image.fromarray(pixels)
    scaled.info = high.info
    return scaled


def _white(brightest: float) -> float:
    """The largest value of the depth that holds it; beyond 16 bits the brightest value itself."""
    return next((2.0**bits - 1 for bits in _DEPTHS if brightest < 2**bits), brightest)


def _scaled(values: npt.NDArray[np.float64], white: float) -> npt.NDArray[np.uint8]:
    scaled: npt.NDArray[np.uint8] = (values.clip(0) * (255.0 / white)).round().astype(np.uint8)
    return scaled
