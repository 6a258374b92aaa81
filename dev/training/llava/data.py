"""Training pictures and what lies on each of their patches, rendered once into memory maps."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmcompress.eval.worlds.world import (
    COLORS,
    GLYPHS,
    IMAGE_SIZE,
    PATCH_SIZE,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    make_scene,
    render,
)

SIDE = IMAGE_SIZE // PATCH_SIZE
PATCHES = SIDE * SIDE
IGNORED = -1
# What is said of a patch, in the order of the label rows; 0 means "nothing there".
FIELDS = {
    "shape": SHAPES,
    "color": COLORS,
    "size": SIZES,
    "glyph": GLYPHS,
    "place": PLACES,
    "middle": ("yes",),
}
TAGS = len(SHAPES) + len(COLORS) + len(GLYPHS) + len(SHAPES) * len(COLORS)
CLEARLY_COVERED = 0.12
BARELY_COVERED = 0.01
_CHUNK = 500


@dataclass(frozen=True)
class Pictures:
    """Rendered scenes of the seeds `0 .. len - 1`, memory-mapped.

    Attributes:
        pixels: [count, 96, 96, 3], uint8.
        labels: [count, fields, 144], int8; 0 is background, -1 is not to be learnt.
        tags: [count, TAGS], uint8, what the picture shows anywhere.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]
    tags: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)


def label(scene: Scene, cover: NDArray[np.float32]) -> NDArray[np.int8]:
    """Say what lies on each patch of `scene`, [fields, 144]."""
    labels = np.zeros((len(FIELDS), SIDE, SIDE), dtype=np.int8)
    touched = cover.max(axis=0)
    labels[:, (touched > BARELY_COVERED) & (touched < CLEARLY_COVERED)] = IGNORED
    owner = cover.argmax(axis=0)
    for index, thing in enumerate(scene.objects):
        middle = int(thing.y) // PATCH_SIZE, int(thing.x) // PATCH_SIZE
        mask = (owner == index) & (touched >= CLEARLY_COVERED)
        mask[middle] = True
        values = (
            SHAPES.index(thing.shape) + 1,
            COLORS.index(thing.color) + 1,
            SIZES.index(thing.size) + 1,
            0,
            PLACES.index(thing.place) + 1,
            0,
        )
        labels[:, mask] = np.array(values, dtype=np.int8)[:, None]
        # A sign is drawn inside the patch that holds the object's centre.
        labels[3][middle] = 0 if thing.glyph is None else GLYPHS.index(thing.glyph) + 1
        labels[5][middle] = 1
    return labels.reshape(len(FIELDS), PATCHES)


def tag(scene: Scene) -> NDArray[np.uint8]:
    """Say what `scene` shows anywhere: shapes, colours, signs, coloured shapes."""
    shapes, colors, glyphs = (np.zeros(len(words)) for words in (SHAPES, COLORS, GLYPHS))
    pairs = np.zeros((len(COLORS), len(SHAPES)))
    for thing in scene.objects:
        shape, color = SHAPES.index(thing.shape), COLORS.index(thing.color)
        shapes[shape] = colors[color] = pairs[color, shape] = 1
        if thing.glyph is not None:
            glyphs[GLYPHS.index(thing.glyph)] = 1
    return np.concatenate([shapes, colors, glyphs, pairs.ravel()]).astype(np.uint8)


def prepare(folder: Path, count: int, workers: int = 2) -> Pictures:
    """Render the first `count` training scenes into `folder`, or reuse what is there."""
    render_once(folder / f"rendered-{count}", count, _open, _render_chunk, _CHUNK, workers)
    return _open(folder, count, "r")


def render_once(
    done: Path,
    count: int,
    open_arrays: Callable[[Path, int, Any], Any],
    render_chunk: Callable[[tuple[Path, int, int]], None],
    chunk: int,
    workers: int,
) -> None:
    """Fill the arrays of a folder in parallel, unless `done`, a file in it, says that they are."""
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    arrays = open_arrays(done.parent, count, "w+")
    del arrays
    jobs = [(done.parent, count, start) for start in range(0, count, chunk)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(render_chunk, jobs))
    done.touch()


def on_disk(folder: Path, name: str, dtype: Any, shape: tuple[int, ...], mode: Any) -> NDArray[Any]:
    """An array in a file that names its length, `shape[0]`."""
    return np.memmap(folder / f"{name}-{shape[0]}.bin", dtype=dtype, mode=mode, shape=shape)


def _open(folder: Path, count: int, mode: Any) -> Pictures:
    def array(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return on_disk(folder, name, dtype, (count, *shape), mode)

    return Pictures(
        array("pixels", np.uint8, IMAGE_SIZE, IMAGE_SIZE, 3),
        array("labels", np.int8, len(FIELDS), PATCHES),
        array("tags", np.uint8, TAGS),
    )


def _render_chunk(job: tuple[Path, int, int]) -> None:
    folder, count, start = job
    pictures = _open(folder, count, "r+")
    for seed in range(start, min(start + _CHUNK, count)):
        scene = make_scene(seed)
        pictures.pixels[seed], cover = render(scene)
        pictures.labels[seed] = label(scene, cover)
        pictures.tags[seed] = tag(scene)
