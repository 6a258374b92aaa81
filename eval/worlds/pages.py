"""Pages to be found by what is on them: figures among lines of writing, and queries that name some.

A page is upright, 128 pixels wide and 160 high, with six to ten figures in a grid of cells; the
other cells hold bars in place of writing. A query names figures by colour and shape, some with
their sign, and every page that has all of them is relevant. Everything follows from seeds, of the
same ranges as those of scenes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmcompress.eval.worlds.draw import add_object
from vlmcompress.eval.worlds.scene import (
    CELL,
    COLORS,
    HELD_OUT_SEEDS,
    SHAPES,
    Figure,
    make_figure,
    pick,
)

VERSION = 1
ROWS, COLUMNS = 5, 4
HEIGHT, WIDTH = ROWS * CELL, COLUMNS * CELL

_FIGURES = (6, 10)
_MOST_RELEVANT = 3
_LONGEST = 5
_SIGN_ODDS = 0.5


@dataclass(frozen=True)
class Page:
    """What is on a page, in raster order of its cells, and the shade of its paper."""

    seed: int
    figures: tuple[Figure, ...]
    cells: tuple[int, ...]
    """The cell of each figure, counted row by row."""
    paper: tuple[int, int, int]


@dataclass(frozen=True)
class Wanted:
    """One thing that a query names; any sign will do where it names none."""

    name: str
    glyph: str | None

    def __str__(self) -> str:
        return self.name if self.glyph is None else f"{self.name} sign {self.glyph}"

    def on(self, page: Page) -> bool:
        """Whether some figure of the page is meant."""
        return any(
            figure.name == self.name and self.glyph in (None, figure.glyph)
            for figure in page.figures
        )


@dataclass(frozen=True)
class Query:
    """A query; relevant are the pages that have all that it names."""

    wanted: tuple[Wanted, ...]

    @property
    def text(self) -> str:
        """As it is asked."""
        return " , ".join(map(str, self.wanted))

    def relevant(self, page: Page) -> bool:
        """Whether the page has all of it."""
        return all(one.on(page) for one in self.wanted)


@dataclass(frozen=True)
class Collection:
    """Pages, queries, and which page is relevant to which query."""

    pages: tuple[Page, ...]
    queries: tuple[Query, ...]
    relevant: NDArray[np.bool_]
    """[queries, pages]; a row has one to three, more only where five names are too few."""


def make_page(seed: int) -> Page:
    """Make the page of `seed`."""
    rng = np.random.default_rng([VERSION, seed, 3])
    count = int(rng.integers(_FIGURES[0], _FIGURES[1] + 1))
    cells = sorted(int(cell) for cell in rng.choice(ROWS * COLUMNS, size=count, replace=False))
    figures = tuple(
        make_figure(
            rng, pick(rng, SHAPES), pick(rng, COLORS), cell % COLUMNS * CELL, cell // COLUMNS * CELL
        )
        for cell in cells
    )
    grey, tint = rng.integers(125, 165), rng.integers(-8, 9, size=3)
    red, green, blue = (int(value) for value in grey + tint)
    return Page(seed, figures, tuple(cells), (red, green, blue))


def draw_page(page: Page) -> Image.Image:
    """Draw `page` as an RGB picture, 128 wide and 160 high; the same page gives the same bytes."""
    return Image.fromarray(render_page(page))


def render_page(page: Page) -> NDArray[np.uint8]:
    """Draw `page`, [160, 128, 3]."""
    rng = np.random.default_rng([VERSION, page.seed, 4])
    canvas = np.empty((HEIGHT, WIDTH, 3), dtype=np.float32)
    canvas[:] = page.paper
    canvas += 3 * rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32)
    for cell in sorted(set(range(ROWS * COLUMNS)) - set(page.cells)):
        _write_lines(rng, canvas, cell)
    for figure in page.figures:
        add_object(canvas, figure, rng.integers(-14, 15, size=3))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _write_lines(rng: np.random.Generator, canvas: NDArray[np.float32], cell: int) -> None:
    """Bars in place of writing, the last of a paragraph shorter; some cells stay empty."""
    top, left = cell // COLUMNS * CELL, cell % COLUMNS * CELL
    lines = int(rng.integers(0, 6))
    ink = float(rng.integers(-70, -35))
    for line in range(lines):
        right = CELL if line < lines - 1 else int(rng.integers(8, CELL))
        row = top + 3 + 5 * line
        canvas[row : row + 2, left : left + right] += ink


def ask_page(page: Page, rng: np.random.Generator, count: int) -> Query:
    """Name `count` figures of a page, as many of another name as there are."""
    wanted: dict[str, Wanted] = {}
    for index in rng.permutation(len(page.figures)):
        figure = page.figures[int(index)]
        told = figure.glyph if rng.random() < _SIGN_ODDS else None
        if figure.name not in wanted and len(wanted) < count:
            wanted[figure.name] = Wanted(figure.name, told)
    return Query(tuple(wanted.values()))


def collection(pages: int, queries: int, first_seed: int = HELD_OUT_SEEDS.start) -> Collection:
    """Held-out pages, and queries with as few names as leave one to three of them relevant.

    Args:
        pages: How many, of consecutive seeds.
        queries: How many; they are made about the pages in turn.
        first_seed: Of the pages.

    Raises:
        ValueError: a seed is outside the held-out range.
    """
    seeds = range(first_seed, first_seed + pages)
    if seeds.start not in HELD_OUT_SEEDS or seeds[-1] not in HELD_OUT_SEEDS:
        raise ValueError(f"seeds {seeds} are outside the held-out range {HELD_OUT_SEEDS}")
    made = tuple(map(make_page, seeds))
    asked = tuple(_narrow_queries(made, queries))
    relevant = np.array([[query.relevant(page) for page in made] for query in asked])
    return Collection(made, asked, relevant.reshape(len(asked), len(made)))


def _narrow_queries(pages: Sequence[Page], count: int) -> Iterator[Query]:
    """Queries with as few names as leave at most three pages relevant."""
    for number in range(count):
        page, rng = pages[number % len(pages)], np.random.default_rng([VERSION, number, 5])
        whole = ask_page(page, rng, _LONGEST)
        for length in range(1, len(whole.wanted) + 1):
            query = Query(whole.wanted[:length])
            if sum(map(query.relevant, pages)) <= _MOST_RELEVANT:
                break
        yield query
