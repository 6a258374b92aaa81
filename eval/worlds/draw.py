"""Drawing of scenes: textured background, distractors, shapes with smooth edges, signs."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vlmcompress.eval.worlds.scene import IMAGE_SIZE, PATCH_SIZE, VERSION, Figure, Scene

RGB = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 215),
    "yellow": (235, 215, 50),
    "purple": (145, 50, 185),
    "orange": (240, 130, 30),
    "white": (240, 240, 240),
    "black": (22, 22, 22),
}
_DARK = frozenset({"red", "green", "blue", "purple", "black"})
_SUPERSAMPLING = 4

# Five columns by seven rows, one number a row, the leftmost column is the highest bit.
_FONT = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    "c": (14, 17, 16, 16, 16, 17, 14),
    "e": (31, 16, 16, 30, 16, 16, 31),
    "h": (17, 17, 17, 31, 17, 17, 17),
    "k": (17, 18, 20, 24, 20, 18, 17),
    "l": (16, 16, 16, 16, 16, 16, 31),
    "n": (17, 17, 25, 21, 19, 17, 17),
    "p": (30, 17, 17, 30, 16, 16, 16),
    "t": (31, 4, 4, 4, 4, 4, 4),
    "x": (17, 17, 10, 4, 10, 17, 17),
    "y": (17, 17, 17, 10, 4, 4, 4),
}
_BITMAPS = {
    glyph: np.array([[row >> (4 - bit) & 1 for bit in range(5)] for row in rows], dtype=bool)
    for glyph, rows in _FONT.items()
}


def draw(scene: Scene) -> Image.Image:
    """Draw `scene` as an RGB picture of 96x96 pixels; the same scene gives the same bytes."""
    return Image.fromarray(render(scene)[0])


def render(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw `scene`, and measure where its objects lie.

    Returns:
        The picture, [96, 96, 3], and the share of each patch that each object covers,
        [objects, 12, 12] in [0, 1].
    """
    rng, canvas = make_canvas(scene)
    side = IMAGE_SIZE // PATCH_SIZE
    cover = np.zeros((len(scene.objects), side, side), dtype=np.float32)
    for index, thing in enumerate(scene.objects):
        cover[index] = add_object(canvas, thing, rng.integers(-14, 15, size=3))
    return np.clip(canvas, 0, 255).astype(np.uint8), cover


def make_canvas(scene: Scene) -> tuple[np.random.Generator, NDArray[np.float32]]:
    """The background of `scene` with its distractors, [96, 96, 3], and what drew it."""
    rng = np.random.default_rng([VERSION, scene.seed, 1])
    canvas = _background(rng, scene)
    distract(rng, canvas)
    return rng, canvas


def add_object(
    canvas: NDArray[np.float32], thing: Figure, shade: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Draw `thing`, its colour shifted by `shade`.

    Args:
        canvas: [H, W, 3], changed in place; whole patches.
        thing: What to draw.
        shade: [3], of red, green and blue.

    Returns:
        Its share of each patch, [H / 8, W / 8] in [0, 1].
    """
    alpha = _alpha(thing, *canvas.shape[:2])
    color = np.array(RGB[thing.color], dtype=np.float32) + shade
    canvas += alpha[..., None] * (color - canvas)
    if thing.glyph is not None:
        _write(canvas, thing)
    rows, columns = (extent // PATCH_SIZE for extent in alpha.shape)
    patches = alpha.reshape(rows, PATCH_SIZE, columns, PATCH_SIZE)
    cover: NDArray[np.float32] = patches.mean(axis=(1, 3))
    return cover


def _background(rng: np.random.Generator, scene: Scene) -> NDArray[np.float32]:
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = scene.background
    texture(rng, canvas, scene.texture)
    return canvas


def texture(rng: np.random.Generator, canvas: NDArray[np.float32], kind: str) -> None:
    """Lay one of the `TEXTURES` over `canvas`, [H, W, 3], in place."""
    row, column = np.mgrid[: canvas.shape[0], : canvas.shape[1]].astype(np.float32)
    period = float(rng.uniform(5, 14))
    angle = float(rng.uniform(0, math.pi))
    along = row * math.sin(angle) + column * math.cos(angle)
    if kind == "stripes":
        canvas += (12 * np.sign(np.sin(2 * math.pi * along / period)))[..., None]
    elif kind == "checks":
        canvas += (10 * np.where((row // period + column // period) % 2 > 0, 1, -1))[..., None]
    elif kind == "gradient":
        canvas += ((along - along.mean()) * 0.4)[..., None]
    strength = 12 if kind == "noise" else 3
    canvas += strength * rng.standard_normal((*canvas.shape[:2], 1), dtype=np.float32)


def distract(rng: np.random.Generator, canvas: NDArray[np.float32]) -> None:
    """Strew coloured specks and short lines over `canvas` that no question asks about."""
    colors = np.array(list(RGB.values()), dtype=np.float32)
    for _ in range(int(rng.integers(0, 9))):
        y, x = rng.integers(0, len(canvas) - 6, size=2)
        height, width = ((1, 6), (6, 1), (2, 2), (1, 3))[int(rng.integers(4))]
        canvas[y : y + height, x : x + width] = colors[int(rng.integers(len(colors)))]


def _alpha(thing: Figure, height: int, width: int) -> NDArray[np.float32]:
    reach = math.ceil(thing.radius) + 1
    left, top = int(thing.x) - reach, int(thing.y) - reach
    side = 2 * reach + 1
    mask = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    middle = (thing.x - left, thing.y - top)
    corners = [
        (
            (middle[0] + thing.radius * x) * _SUPERSAMPLING,
            (middle[1] + thing.radius * y) * _SUPERSAMPLING,
        )
        for x, y in _outline(thing)
    ]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    small = np.asarray(mask.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
    alpha = np.zeros((height, width), dtype=np.float32)
    y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
    alpha[y0:y1, x0:x1] = small[y0 - top : y1 - top, x0 - left : x1 - left]
    return alpha


def _outline(thing: Figure) -> list[tuple[float, float]]:
    """Corners in the unit disc, tilted."""
    match thing.shape:
        case "circle":
            polar = [(0.95, 2 * math.pi * step / 32) for step in range(32)]
        case "square":
            polar = [(1.2, math.pi / 4 + math.pi / 2 * step) for step in range(4)]
        case "diamond":
            polar = [(1.0 if step % 2 else 1.05, math.pi / 2 * step) for step in range(4)]
        case "triangle":
            polar = [(1.12, -math.pi / 2 + 2 * math.pi / 3 * step) for step in range(3)]
        case "star":
            polar = [
                (0.45 if step % 2 else 1.1, -math.pi / 2 + math.pi / 5 * step) for step in range(10)
            ]
        case _:
            arm = math.atan2(0.33, 1.0)
            polar = [
                point
                for step in range(4)
                for point in (
                    (1.05, math.pi / 2 * step - arm),
                    (1.05, math.pi / 2 * step + arm),
                    (0.47, math.pi / 2 * step + math.pi / 4),
                )
            ]
    return [
        (length * math.cos(angle + thing.tilt), length * math.sin(angle + thing.tilt))
        for length, angle in polar
    ]


def _write(canvas: NDArray[np.float32], thing: Figure) -> None:
    assert thing.glyph is not None
    bitmap = _BITMAPS[thing.glyph]
    height, width = bitmap.shape
    y = _inside_patch(thing.y, height)
    x = _inside_patch(thing.x, width)
    ink = 250.0 if thing.color in _DARK else 10.0
    canvas[y : y + height, x : x + width][bitmap] = ink


def _inside_patch(middle: float, extent: int) -> int:
    """First pixel of a sign centred near `middle` that stays within the patch of `middle`."""
    first = int(middle) // PATCH_SIZE * PATCH_SIZE
    return min(max(round(middle - extent / 2), first), first + PATCH_SIZE - extent)
