"""What tiny-qwen is trained on: pictures and clips, cut into patches, and what each token shows.

A token of Qwen's vision tower is a square of 16x16 pixels over two frames. A picture is a clip of
one step that shows it twice, as Qwen's image processor has it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dev.training.llava.data import (
    BARELY_COVERED,
    CLEARLY_COVERED,
    FIELDS,
    IGNORED,
    SIDE,
    on_disk,
    render_once,
)
from vlmcompress.eval.worlds.clips import (
    DIRECTIONS,
    FRAMES,
    FRAMES_PER_STEP,
    STEPS,
    Clip,
    make_clip,
    render_clip,
)
from vlmcompress.eval.worlds.scene import COLORS, IMAGE_SIZE, PATCH_SIZE, SHAPES, SIZES

MERGE = 2
TOKEN_SIDE = SIDE // MERGE
TOKENS = TOKEN_SIDE**2
# What is said of a token, in the order of the label rows; 0 means "nothing there".
TOKEN_FIELDS = {name: FIELDS[name] for name in ("shape", "color", "size", "glyph", "middle")} | {
    "motion": tuple(DIRECTIONS)
}
# Which object it is: a place in a picture, the number of an actor in a clip.
OWNER = len(TOKEN_FIELDS)
ROWS = OWNER + 1
_MIDDLE = list(TOKEN_FIELDS).index("middle")
_PICTURE_ROWS = ("shape", "color", "size", "glyph", "middle", "place")
_CHUNK = 100


@dataclass(frozen=True)
class Clips:
    """Rendered clips of the seeds `0 .. len - 1`, memory-mapped.

    Attributes:
        frames: [count, 8, 96, 96, 3], uint8.
        labels: [count, 4, ROWS, 36], int8; 0 is background, -1 is not to be learnt.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.frames)


def as_patches(frames: NDArray[np.uint8]) -> Tensor:
    """Cut frames as the image and video processors of Qwen2.5-VL do.

    Args:
        frames: [B, T, 96, 96, 3] with an even T.

    Returns:
        [B * T / 2 * 144, 384] in [-1, 1], bfloat16; the four patches of a token follow each other.
    """
    steps = frames.shape[1] // FRAMES_PER_STEP
    across = (TOKEN_SIDE, MERGE, PATCH_SIZE)
    cut = torch.from_numpy(frames).reshape(-1, steps, FRAMES_PER_STEP, *across, *across, 3)
    cut = cut.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return cut.reshape(-1, 3 * FRAMES_PER_STEP * PATCH_SIZE**2).to(torch.bfloat16) / 127.5 - 1.0


def as_pairs(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures, [B, 96, 96, 3], as clips of one step, [B, 2, 96, 96, 3]."""
    return np.repeat(pixels[:, None], FRAMES_PER_STEP, axis=1)


def merge_labels(labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """Labels of patches, [..., ROWS, 12, 12], to labels of tokens, [..., ROWS, 36].

    Of its four patches a token takes the one that holds the middle of an object, else one that
    shows an object, else one that is not to be learnt.
    """
    lead = labels.shape[:-2]
    four = labels.reshape(*lead, TOKEN_SIDE, MERGE, TOKEN_SIDE, MERGE).swapaxes(-3, -2)
    four = four.reshape(*lead, TOKENS, MERGE**2)
    middle, owner = four[..., _MIDDLE, :, :], four[..., OWNER, :, :]
    worth = 4 * (middle == 1) + 2 * (owner > 0) + (owner == IGNORED)
    best = worth.argmax(axis=-1)[..., None, :, None]
    return np.take_along_axis(four, best, axis=-1)[..., 0]


def picture_labels(labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """Labels of the patches of pictures, [B, fields, 144], to [B, ROWS, 36]; nothing moves."""
    rows = [labels[:, list(FIELDS).index(name)] for name in _PICTURE_ROWS]
    rows.insert(list(TOKEN_FIELDS).index("motion"), np.minimum(rows[0], 0))
    return merge_labels(np.stack(rows, axis=1).reshape(-1, ROWS, SIDE, SIDE))


def label_clip(clip: Clip, covers: NDArray[np.float32]) -> NDArray[np.int8]:
    """Say what lies on each token of `clip`, [4, ROWS, 36].

    Args:
        clip: What is labelled.
        covers: Of `render_clip`.
    """
    labels = np.zeros((STEPS, ROWS, SIDE, SIDE), dtype=np.int8)
    for step, cover in enumerate(covers):
        touched = cover.max(axis=0)
        labels[step][:, (touched > BARELY_COVERED) & (touched < CLEARLY_COVERED)] = IGNORED
        owner = cover.argmax(axis=0)
        for index, actor in enumerate(clip.actors):
            first, last = (
                actor.at(step * FRAMES_PER_STEP),
                actor.at((step + 1) * FRAMES_PER_STEP - 1),
            )
            if first is None or last is None:
                continue
            middle = tuple(
                int((one + other) / 2) // PATCH_SIZE
                for one, other in ((first.y, last.y), (first.x, last.x))
            )
            mask = (owner == index) & (touched >= CLEARLY_COVERED)
            mask[middle] = True
            moving = 0 if actor.direction is None else list(DIRECTIONS).index(actor.direction) + 1
            values = (
                SHAPES.index(first.shape) + 1,
                COLORS.index(first.color) + 1,
                SIZES.index(first.size) + 1,
                0,
                0,
                moving,
                index + 1,
            )
            labels[step][:, mask] = np.array(values, dtype=np.int8)[:, None]
            labels[step][_MIDDLE][middle] = 1
    return merge_labels(labels)


def prepare_clips(folder: Path, count: int, workers: int = 2) -> Clips:
    """Render the first `count` training clips into `folder`, or reuse what is there."""
    render_once(folder / f"clips-rendered-{count}", count, _open, _render_chunk, _CHUNK, workers)
    return _open(folder, count, "r")


def _open(folder: Path, count: int, mode: Any) -> Clips:
    frames, labels = (FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), (STEPS, ROWS, TOKENS)
    return Clips(
        on_disk(folder, "clip-frames", np.uint8, (count, *frames), mode),
        on_disk(folder, "clip-labels", np.int8, (count, *labels), mode),
    )


def _render_chunk(job: tuple[Path, int, int]) -> None:
    folder, count, start = job
    clips = _open(folder, count, "r+")
    for seed in range(start, min(start + _CHUNK, count)):
        clip = make_clip(seed)
        clips.frames[seed], covers = render_clip(clip)
        clips.labels[seed] = label_clip(clip, covers)
