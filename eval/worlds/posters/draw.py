"""Drawing of posters: backgrounds, some of them photographs, charts, shapes, icons, writing."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmcompress.eval.worlds.draw import RGB, add_object, distract, texture
from vlmcompress.eval.worlds.posters.poster import (
    FONTS,
    GLYPHS,
    HIGHEST_BAR,
    ICONS,
    IMAGE_SIZE,
    PHOTOS,
    VERSION,
    Chart,
    Item,
    Plate,
    Poster,
    patches_of,
)
from vlmcompress.eval.worlds.scene import CELL, PATCH_SIZE, Figure, pick

SIDE = IMAGE_SIZE // PATCH_SIZE
_DATA = Path(__file__).with_name("data")
_PHOTO_CONTRAST = (0.3, 0.6)


def draw_poster(poster: Poster) -> Image.Image:
    """Draw `poster` as an RGB picture of 192x192 pixels; the same one gives the same bytes."""
    return Image.fromarray(render_poster(poster)[0])


def render_poster(poster: Poster) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw `poster`, and measure where its items lie.

    Returns:
        The picture, [192, 192, 3], and the share of each patch that each item covers,
        [items, 24, 24] in [0, 1], plates not counted.
    """
    rng = np.random.default_rng([VERSION, poster.seed, 11])
    canvas = _background(rng, poster)
    if poster.chart is not None:
        _draw_chart(rng, canvas, poster.chart)
    cover = np.zeros((len(poster.items), SIDE, SIDE), dtype=np.float32)
    for index, item in enumerate(poster.items):
        cover[index] = _add_item(rng, canvas, item)
        if item.plate is not None:
            _write(rng, canvas, item.plate)
    return np.clip(canvas, 0, 255).astype(np.uint8), cover


def _background(rng: np.random.Generator, poster: Poster) -> NDArray[np.float32]:
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = poster.background
    if poster.texture == "photo":
        photo = _pictures("photos.png")[pick(rng, PHOTOS)]
        side = int(rng.integers(photo.height // 2, photo.height + 1))
        left, top = (int(value) for value in rng.integers(0, photo.height - side + 1, size=2))
        grown = photo.convert("RGB").resize(
            (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        canvas += (np.asarray(grown, dtype=np.float32) - 122) * rng.uniform(*_PHOTO_CONTRAST)
    else:
        texture(rng, canvas, poster.texture)
    distract(rng, canvas)
    return canvas


def _draw_chart(rng: np.random.Generator, canvas: NDArray[np.float32], chart: Chart) -> None:
    """Bars, one patch wide, on a card with a line for the axis and one for every unit."""
    top, left = chart.row * CELL, chart.column * CELL
    bottom = chart.base * PATCH_SIZE
    card = canvas[top + 2 : bottom + PATCH_SIZE, left + 2 : left + 3 * CELL - 2]
    card[:] = rng.integers(165, 200)
    across = slice(left + 4, left + 3 * CELL - 4)
    canvas[bottom - HIGHEST_BAR * PATCH_SIZE : bottom : PATCH_SIZE, across] -= 30
    canvas[bottom : bottom + 2, across] = 60
    for bar in chart.bars:
        high, column = bottom - bar.value * PATCH_SIZE, bar.column * PATCH_SIZE
        shade = rng.integers(-14, 15, size=3)
        canvas[high:bottom, column : column + PATCH_SIZE] = np.array(RGB[bar.color]) + shade


def _add_item(
    rng: np.random.Generator, canvas: NDArray[np.float32], item: Item
) -> NDArray[np.float32]:
    if item.color is not None:
        figure = Figure(item.kind, item.color, "", item.x, item.y, item.radius, item.tilt)
        return add_object(canvas, figure, rng.integers(-14, 15, size=3))
    side = round(2 * item.radius)
    icon = _pictures("icons.png")[item.kind].resize((side, side), Image.Resampling.HAMMING)
    pixels = np.asarray(icon, dtype=np.float32)
    top, left = round(item.y - side / 2), round(item.x - side / 2)
    alpha = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)
    alpha[top : top + side, left : left + side] = pixels[..., 3:] / 255
    spot = canvas[top : top + side, left : left + side]
    spot += alpha[top : top + side, left : left + side] * (pixels[..., :3] - spot)
    cover: NDArray[np.float32] = alpha.reshape(SIDE, PATCH_SIZE, SIDE, PATCH_SIZE).mean((1, 3))
    return cover


def _write(rng: np.random.Generator, canvas: NDArray[np.float32], plate: Plate) -> None:
    """A card with one sign a patch, each up to a pixel off its middle."""
    ground, ink = (35.0, 245.0) if plate.dark else (225.0, 15.0)
    for sign, (rows, columns) in zip(plate.text, patches_of(plate), strict=True):
        y, x = rows.start * PATCH_SIZE, columns.start * PATCH_SIZE
        size = PATCH_SIZE * plate.scale
        spot = canvas[y : y + size, x : x + size]
        spot[:] = ground
        shape = _pictures("signs.png")[f"{plate.font} {sign}"]
        if plate.scale > 1:
            shape = shape.resize((size, size), Image.Resampling.BICUBIC)
        moved = np.roll(
            np.asarray(shape, dtype=np.float32)[..., None] / 255,
            tuple(int(step) for step in rng.integers(0, plate.scale + 1, size=2)),
            axis=(0, 1),
        )
        spot += moved * (ink - spot)


@cache
def _pictures(file: str) -> Mapping[str, Image.Image]:
    """The squares of a sheet of pictures, in one row, by name."""
    names: dict[str, list[str]] = {
        "icons.png": list(ICONS),
        "photos.png": list(PHOTOS),
        "signs.png": [f"{font} {sign}" for font in FONTS for sign in GLYPHS],
    }
    with Image.open(_DATA / file) as sheet:
        sheet.load()
    side = sheet.height
    return {
        name: sheet.crop((number * side, 0, (number + 1) * side, side))
        for number, name in enumerate(names[file])
    }
