"""Scenes of the synthetic world: what is in a picture, before anything is drawn.

A scene is a 3x3 grid of places with at most one object in each, so that "where" always has one
answer. Everything follows from an integer seed through a local NumPy generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

VERSION = 1
IMAGE_SIZE = 96
PATCH_SIZE = 8
CELL = IMAGE_SIZE // 3

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "medium", "large")
GLYPHS = tuple("0123456789cehklnptxy")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
TEXTURES = ("plain", "noise", "stripes", "checks", "gradient")

Option = TypeVar("Option")

# The split is by seed: a scene of one range is never drawn from the other.
TRAIN_SEEDS = range(0, 1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 2_000_000)

_RADII = {"small": (5.0, 6.0), "medium": (7.5, 8.5), "large": (10.5, 11.5)}
_SIZE_ODDS = (0.4, 0.35, 0.25)
_GLYPH_ODDS = 0.55


@dataclass(frozen=True)
class Figure:
    """One drawn thing; `x` and `y` are its centre in pixels."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float
    glyph: str | None = None

    @property
    def name(self) -> str:
        """Colour and shape, as the questions call it."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Object(Figure):
    """A figure of a scene; `place` is its cell."""

    place: str

    @property
    def row(self) -> int:
        """Row of its cell, 0 at the top."""
        return PLACES.index(self.place) // 3

    @property
    def column(self) -> int:
        """Column of its cell, 0 at the left."""
        return PLACES.index(self.place) % 3


@dataclass(frozen=True)
class Scene:
    """Objects in raster order of their cells, on a textured background."""

    seed: int
    objects: tuple[Object, ...]
    texture: str
    background: tuple[int, int, int]

    @property
    def caption(self) -> str:
        """Every object with its place, in raster order."""
        return " , ".join(f"{thing.name} {thing.place}" for thing in self.objects)


def make_scene(seed: int) -> Scene:
    """Make the scene of `seed`.

    Two thirds of the scenes repeat one shape or one colour two to five times, or counting would
    almost always have the answer one.
    """
    rng = np.random.default_rng([VERSION, seed])
    count = int(rng.integers(3, 9))
    shapes = [pick(rng, SHAPES) for _ in range(count)]
    colors = [pick(rng, COLORS) for _ in range(count)]
    theme = rng.random()
    repeats = min(count, int(rng.integers(2, 6)))
    if theme < 0.4:
        repeat(rng, shapes, SHAPES, repeats)
    elif theme < 0.7:
        repeat(rng, colors, COLORS, repeats)
    cells = sorted(int(cell) for cell in rng.choice(9, size=count, replace=False))
    objects = tuple(
        make_object(rng, shape, color, cell)
        for shape, color, cell in zip(shapes, colors, cells, strict=True)
    )
    grey = rng.integers(95, 150)
    tint = rng.integers(-18, 19, size=3)
    red, green, blue = (int(value) for value in grey + tint)
    return Scene(seed, objects, pick(rng, TEXTURES), (red, green, blue))


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def repeat(
    rng: np.random.Generator, values: list[str], options: Sequence[str], repeats: int
) -> None:
    """Give exactly `repeats` members of `values` one common value, and no other member."""
    common = pick(rng, options)
    others = [option for option in options if option != common]
    for index, value in enumerate(values):
        if value == common:
            values[index] = pick(rng, others)
    for index in rng.choice(len(values), size=repeats, replace=False):
        values[int(index)] = common


def make_object(rng: np.random.Generator, shape: str, color: str, cell: int) -> Object:
    """An object of random size within `cell`, every second one with a sign."""
    row, column = divmod(cell, 3)
    figure = make_figure(rng, shape, color, column * CELL, row * CELL)
    return Object(**vars(figure), place=PLACES[cell])


def make_figure(rng: np.random.Generator, shape: str, color: str, left: int, top: int) -> Figure:
    """A figure of random size in the cell whose corner is at `left` and `top` (pixels)."""
    size = SIZES[int(rng.choice(len(SIZES), p=_SIZE_ODDS))]
    radius = float(rng.uniform(*_RADII[size]))
    glyph = None
    if size != "small" and rng.random() < _GLYPH_ODDS:
        glyph = pick(rng, GLYPHS)
        x, y = _on_a_patch(rng, radius), _on_a_patch(rng, radius)
    else:
        x, y = (float(rng.uniform(radius + 0.5, CELL - radius - 0.5)) for _ in range(2))
    return Figure(
        shape=shape,
        color=color,
        size=size,
        x=left + x,
        y=top + y,
        radius=radius,
        tilt=float(rng.uniform(-0.14, 0.14)),
        glyph=glyph,
    )


def _on_a_patch(rng: np.random.Generator, radius: float) -> float:
    """A coordinate near the middle of a patch, so that one patch holds the whole glyph.

    A sign that straddles patches can be read only by joining four of them, which a vision tower
    of this size does not learn in minutes; a sign in one patch is also lost with that one patch.
    """
    middles = [
        middle
        for middle in np.arange(PATCH_SIZE / 2, CELL, PATCH_SIZE)
        if radius - 0.5 <= middle <= CELL - radius + 0.5
    ]
    return float(rng.choice(middles) + rng.uniform(-1.2, 1.2))
