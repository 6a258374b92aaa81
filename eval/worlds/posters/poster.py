"""Posters: what is on one, before anything is drawn.

A poster is a grid of 6x6 cells of 32 pixels. An item, a coloured shape or an icon, fills a cell or
a square of four; a plate of writing may belong to it. Some posters hold a list, whose plates lie
beside their items, or a bar chart. Two by two cells make one of nine places. Everything follows
from an integer seed through a local NumPy generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmcompress.eval.worlds.scene import CELL, COLORS, PATCH_SIZE, PLACES, SHAPES, pick, repeat

VERSION = 1
CELLS = 6
IMAGE_SIZE = CELLS * CELL
CELL_PATCHES = CELL // PATCH_SIZE

_ICONS = (
    "apple banana carrot mushroom crab owl duck cat fox panda pig frog turtle bee butterfly tree "
    "cactus flower rose car bus train boat rocket bike house castle umbrella ball guitar drum bell "
    "key clock book bulb crown hat heart cloud robot ghost gift"
)
ICONS = tuple(_ICONS.split())
GLYPHS = tuple("0123456789acefhjklnprtuvxy")
"""Signs that fit a patch and are not mistaken for each other in any of the `FONTS`."""
FONTS = ("sans", "serif", "mono")
PHOTOS = ("chelsea", "coffee", "rocket", "hubble", "brick", "grass", "gravel")
TEXTURES = ("plain", "noise", "stripes", "checks", "gradient", "photo", "photo", "photo")
HIGHEST_BAR = 9

_CHART_CELLS = 3
_CHART_ODDS, _LIST_ODDS = 0.3, 0.2
_PLATE_ODDS = 0.45
_MOST_ALIKE = 9


@dataclass(frozen=True)
class Plate:
    """A line of writing; `row` and `column` are the patch of its first sign.

    `scale` is 1 where a sign fills one patch and 2 where it fills four; `dark` is the ground.
    """

    text: str
    row: int
    column: int
    scale: int
    font: str
    dark: bool


@dataclass(frozen=True)
class Item:
    """A coloured shape, or an icon without a colour.

    `x`, `y` and `radius` are in pixels; `row` and `column` are its cell, the upper left one of
    four if `large`.
    """

    kind: str
    color: str | None
    x: float
    y: float
    radius: float
    tilt: float
    row: int
    column: int
    large: bool = False
    plate: Plate | None = None
    in_list: bool = False

    @property
    def name(self) -> str:
        """As the questions call it: "red circle", "apple"."""
        return self.kind if self.color is None else f"{self.color} {self.kind}"

    @property
    def place(self) -> str:
        """The ninth of the poster in which it lies."""
        return PLACES[self.row // 2 * 3 + self.column // 2]


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, `value` patches high, in the patch column `column` of the poster."""

    color: str
    value: int
    column: int


@dataclass(frozen=True)
class Chart:
    """Bars side by side on the patch row `base`, no two of a colour or height, a line for each one.

    `row` and `column` are the cell of its upper left corner.
    """

    row: int
    column: int
    base: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Poster:
    """Items in raster order of their cells, perhaps a chart, on a background."""

    seed: int
    items: tuple[Item, ...]
    chart: Chart | None
    texture: str
    background: tuple[int, int, int]


def make_poster(seed: int) -> Poster:
    """Make the poster of `seed`."""
    rng = np.random.default_rng([VERSION, seed, 10])
    free = np.ones((CELLS, CELLS), dtype=bool)
    theme = rng.random()
    chart = _chart(rng, free) if theme < _CHART_ODDS else None
    rows = _list_rows(rng, free) if _CHART_ODDS <= theme < _CHART_ODDS + _LIST_ODDS else []
    large = _large_cells(rng, free)
    cells = [(int(row), int(column)) for row, column in np.argwhere(free)]
    most = min(len(cells), 14 - len(rows))
    chosen = rng.choice(len(cells), size=int(rng.integers(3, most + 1)), replace=False)
    spots: list[tuple[int, int, bool, bool]] = [(*cell, True, False) for cell in large]
    spots += [(*cell, False, True) for cell in rows]
    spots += [(*cells[int(index)], False, False) for index in chosen]
    names = _names(rng, len(spots))
    items = [_item(rng, name, spot) for name, spot in zip(names, spots, strict=True)]
    grey, tint = rng.integers(95, 150), rng.integers(-18, 19, size=3)
    red, green, blue = (int(value) for value in grey + tint)
    items.sort(key=lambda item: (item.row, item.column))
    return Poster(seed, tuple(items), chart, pick(rng, TEXTURES), (red, green, blue))


def _chart(rng: np.random.Generator, free: NDArray[np.bool_]) -> Chart:
    row, column = (int(value) for value in rng.integers(0, CELLS - _CHART_CELLS + 1, size=2))
    free[row : row + _CHART_CELLS, column : column + _CHART_CELLS] = False
    count = int(rng.integers(3, 6))
    colors = rng.choice(len(COLORS), size=count, replace=False)
    values = rng.choice(HIGHEST_BAR, size=count, replace=False) + 1
    first = column * CELL_PATCHES + 1
    bars = tuple(
        Bar(COLORS[int(color)], int(value), first + 2 * number)
        for number, (color, value) in enumerate(zip(colors, values, strict=True))
    )
    return Chart(row, column, (row + _CHART_CELLS) * CELL_PATCHES - 2, bars)


def _list_rows(rng: np.random.Generator, free: NDArray[np.bool_]) -> list[tuple[int, int]]:
    count = int(rng.integers(3, 6))
    first, column = int(rng.integers(0, CELLS - count + 1)), int(rng.integers(0, CELLS - 1))
    free[first : first + count, column : column + 2] = False
    return [(row, column) for row in range(first, first + count)]


def _large_cells(rng: np.random.Generator, free: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Squares of four free cells, each a place, for up to two large items."""
    squares = [
        (row, column)
        for row in range(0, CELLS, 2)
        for column in range(0, CELLS, 2)
        if free[row : row + 2, column : column + 2].all()
    ]
    count = min(int(rng.choice(3, p=(0.5, 0.4, 0.1))), len(squares))
    chosen = [squares[int(index)] for index in rng.choice(len(squares), count, replace=False)]
    for row, column in chosen:
        free[row : row + 2, column : column + 2] = False
    return chosen


def _names(rng: np.random.Generator, count: int) -> list[tuple[str, str | None]]:
    """Kinds and colours; on two posters of three one kind or colour comes up to nine times."""
    kinds = [pick(rng, SHAPES if rng.random() < 0.5 else ICONS) for _ in range(count)]
    colors = [pick(rng, COLORS) for _ in range(count)]
    alike = min(count, int(rng.integers(2, _MOST_ALIKE + 1)))
    theme = rng.random()
    if theme < 0.2:
        repeat(rng, kinds, SHAPES, alike)
    elif theme < 0.45:
        repeat(rng, kinds, ICONS, alike)
    elif theme < 0.7:
        for index in rng.permutation(count)[:alike]:
            kinds[int(index)] = pick(rng, SHAPES)
        shapes = [index for index, kind in enumerate(kinds) if kind in SHAPES]
        shown = [colors[index] for index in shapes]
        repeat(rng, shown, COLORS, alike)
        for index, color in zip(shapes, shown, strict=True):
            colors[index] = color
    return [
        (kind, color if kind in SHAPES else None) for kind, color in zip(kinds, colors, strict=True)
    ]


def _item(
    rng: np.random.Generator, name: tuple[str, str | None], spot: tuple[int, int, bool, bool]
) -> Item:
    """An item of a kind and color at a row and column; whether it is large, and in a list."""
    (kind, color), (row, column, large, in_list) = name, spot
    extent = CELL * 2 if large else CELL
    scale = 2 if large else 1
    below = not in_list and rng.random() < _PLATE_ODDS
    height = extent - PATCH_SIZE * scale if below else extent
    least, most = (0.33, 0.46) if color is None or large else (0.16, 0.4)
    radius = float(rng.uniform(least * height, most * height))
    x = column * CELL + float(rng.uniform(radius + 0.5, extent - radius - 0.5))
    y = row * CELL + float(rng.uniform(radius + 0.5, height - radius - 0.5))
    plate = None
    if below or in_list:
        length = int(rng.integers(2, 5 if in_list else 4))
        patches = extent // PATCH_SIZE // scale
        first = 0 if in_list else int(rng.integers(0, patches - length + 1)) * scale
        down = int(rng.integers(1, 3)) if in_list else height // PATCH_SIZE
        plate = Plate(
            "".join(pick(rng, GLYPHS) for _ in range(length)),
            row * CELL_PATCHES + down,
            (column + in_list) * CELL_PATCHES + first,
            scale,
            pick(rng, FONTS),
            bool(rng.random() < 0.5),
        )
    tilt = float(rng.uniform(-0.14, 0.14))
    return Item(kind, color, x, y, radius, tilt, row, column, large, plate, in_list)


def patches_of(plate: Plate) -> Sequence[tuple[slice, slice]]:
    """Rows and columns of patches of each sign."""
    size = plate.scale
    return [
        (slice(plate.row, plate.row + size), slice(left, left + size))
        for left in range(plate.column, plate.column + size * len(plate.text), size)
    ]
