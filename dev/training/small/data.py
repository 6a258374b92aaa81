"""Training posters and what lies on each of their patches, rendered once into memory maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dev.training.llava.data import BARELY_COVERED, CLEARLY_COVERED, IGNORED, on_disk, render_once
from vlmcompress.eval.worlds.posters.draw import SIDE, render_poster
from vlmcompress.eval.worlds.posters.poster import (
    GLYPHS,
    ICONS,
    IMAGE_SIZE,
    Chart,
    Item,
    Poster,
    make_poster,
    patches_of,
)
from vlmcompress.eval.worlds.posters.questions import NUMBERS
from vlmcompress.eval.worlds.scene import COLORS, PATCH_SIZE, PLACES, SHAPES

PATCHES = SIDE * SIDE
ITEM_KINDS = (*SHAPES, *ICONS)
# What is said of a patch, in the order of the label rows; 0 means "nothing there".
FIELDS: dict[str, tuple[str, ...]] = {
    "kind": (*ITEM_KINDS, "bar"),
    "color": COLORS,
    "glyph": GLYPHS,
    "order": ("first", "second", "third", "fourth"),
    "place": PLACES,
    "middle": ("yes",),
    "height": NUMBERS,
    "extreme": ("highest", "lowest"),
}
KIND, COLOR, GLYPH, ORDER, PLACE, MIDDLE, HEIGHT, EXTREME = range(len(FIELDS))
OWNER = len(FIELDS)
"""The row of the number of the item, counted from 1; bars go on after the items."""
ROWS = OWNER + 1
_CHUNK = 250


@dataclass(frozen=True)
class Posters:
    """Rendered posters of the seeds `0 .. len - 1`, memory-mapped.

    Attributes:
        pixels: [count, 192, 192, 3], uint8.
        labels: [count, ROWS, 24, 24], int8; 0 is background, -1 is not to be learnt.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.pixels)


def label_poster(poster: Poster, cover: NDArray[np.float32]) -> NDArray[np.int8]:
    """Say what lies on each patch of `poster`, [ROWS, 24, 24].

    A plate is said to be what its item is, and every patch of a bar how high the bar is.
    """
    labels = np.zeros((ROWS, SIDE, SIDE), dtype=np.int8)
    touched = cover.max(axis=0)
    labels[:, (touched > BARELY_COVERED) & (touched < CLEARLY_COVERED)] = IGNORED
    most = cover.argmax(axis=0)
    for index, item in enumerate(poster.items):
        mask = (most == index) & (touched >= CLEARLY_COVERED)
        middle = int(item.y) // PATCH_SIZE, int(item.x) // PATCH_SIZE
        mask[middle] = True
        values = _values(item, index)
        labels[:, mask] = values[:, None]
        labels[MIDDLE][middle] = 1
        for number, sign in enumerate(patches_of(item.plate) if item.plate else ()):
            assert item.plate is not None
            labels[:, sign[0], sign[1]] = values[:, None, None]
            labels[GLYPH][sign] = GLYPHS.index(item.plate.text[number]) + 1
            labels[ORDER][sign] = number + 1
    if poster.chart is not None:
        _label_chart(labels, poster.chart, len(poster.items))
    return labels


def _values(item: Item, index: int) -> NDArray[np.int8]:
    values = np.zeros(ROWS, dtype=np.int8)
    values[KIND] = ITEM_KINDS.index(item.kind) + 1
    values[COLOR] = 0 if item.color is None else COLORS.index(item.color) + 1
    values[PLACE] = PLACES.index(item.place) + 1
    values[OWNER] = index + 1
    return values


def _label_chart(labels: NDArray[np.int8], chart: Chart, before: int) -> None:
    heights = [bar.value for bar in chart.bars]
    for index, bar in enumerate(chart.bars):
        spot = slice(chart.base - bar.value, chart.base), bar.column
        labels[:, spot[0], spot[1]] = 0
        labels[KIND][spot] = len(FIELDS["kind"])
        labels[COLOR][spot] = COLORS.index(bar.color) + 1
        labels[HEIGHT][spot] = bar.value
        labels[EXTREME][spot] = {max(heights): 1, min(heights): 2}.get(bar.value, 0)
        labels[OWNER][spot] = before + index + 1


def tags_of(labels: NDArray[np.int8]) -> NDArray[np.float32]:
    """What pictures show anywhere: kinds, colours, coloured shapes.

    Args:
        labels: [B, ROWS, N].

    Returns:
        [B, TAGS] of 0 and 1.
    """
    kinds, colors = labels[:, KIND].astype(np.int64), labels[:, COLOR].astype(np.int64)
    pairs = np.where((kinds > 0) & (kinds <= len(SHAPES)), kinds + len(SHAPES) * (colors - 1), 0)
    widths = (len(FIELDS["kind"]), len(COLORS), len(SHAPES) * len(COLORS))
    return np.concatenate(
        [
            (values[:, None] == np.arange(1, width + 1)[:, None]).any(-1)
            for values, width in zip((kinds, colors, pairs), widths, strict=True)
        ],
        axis=1,
    ).astype(np.float32)


TAGS = len(FIELDS["kind"]) + len(COLORS) + len(SHAPES) * len(COLORS)


def prepare_posters(folder: Path, count: int, workers: int = 2) -> Posters:
    """Render the first `count` training posters into `folder`, or reuse what is there."""
    done = folder / f"rendered-posters-{count}"
    render_once(done, count, _open, _render_chunk, _CHUNK, workers)
    return _open(folder, count, "r")


def _open(folder: Path, count: int, mode: Any) -> Posters:
    return Posters(
        on_disk(folder, "poster-pixels", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE, 3), mode),
        on_disk(folder, "poster-labels", np.int8, (count, ROWS, SIDE, SIDE), mode),
    )


def _render_chunk(job: tuple[Path, int, int]) -> None:
    folder, count, start = job
    posters = _open(folder, count, "r+")
    for seed in range(start, min(start + _CHUNK, count)):
        poster = make_poster(seed)
        posters.pixels[seed], cover = render_poster(poster)
        posters.labels[seed] = label_poster(poster, cover)
