"""One picture with its patches: light for how far each gets, lines around what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vlmcompress.report.light import EDGE, dimmed
from vlmcompress.report.overlay.boxes import Box
from vlmcompress.report.overlay.steps import Step

_PADDING = (96, 96, 96)
_UNSEEN = (58, 58, 64)
_ANCHOR = (80, 220, 255)


class Lines(NamedTuple):
    """Where the patches of a grid begin and end on the canvas, in pixels."""

    xs: list[int]
    ys: list[int]


def panel(image: Image.Image, pieces: Sequence[tuple[Box, Step]], scale: float) -> Image.Image:
    """A picture with the patches of one grid or of several tiles, on a canvas that holds all.

    Args:
        image: as it was given to the processor.
        pieces: each grid and where it lies.
        scale: pixels of the canvas for each pixel of the image.
    """
    left, top = (min(0.0, *(box[side] for box, _ in pieces)) for side in (0, 1))
    right = max(image.width, *(box.right for box, _ in pieces))
    bottom = max(image.height, *(box.bottom for box, _ in pieces))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    canvas = Image.new("RGB", size, _PADDING)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    enlarged = image.convert("RGB").resize(inner, Image.Resampling.BICUBIC)
    canvas.paste(enlarged, (round(-left * scale), round(-top * scale)))
    lines = []
    for box, step in pieces:
        rows, columns = step.reached.shape
        lines.append(
            Lines(
                _cuts(box.left - left, box.right - left, columns, scale),
                _cuts(box.top - top, box.bottom - top, rows, scale),
            )
        )
    steps = [step for _, step in pieces]
    shown = _dim(canvas, steps, lines)
    pen = ImageDraw.Draw(shown)
    for step, (xs, ys) in zip(steps, lines, strict=True):
        _edges(pen, step.labels, xs, ys)
        for row, column in step.anchors:
            pen.rectangle((xs[column] + 2, ys[row] + 2, xs[column] + 7, ys[row] + 7), fill=_ANCHOR)
    return shown


def _cuts(near: float, far: float, count: int, scale: float) -> list[int]:
    return [round((near + (far - near) * k / count) * scale) for k in range(count + 1)]


def _dim(canvas: Image.Image, steps: Sequence[Step], lines: Sequence[Lines]) -> Image.Image:
    """Darken and grey patches by the layers that they miss; hatch what lies outside all grids."""
    pixels = np.asarray(canvas, dtype=np.float64)
    height, width, _ = pixels.shape
    down, right = np.mgrid[:height, :width]
    stripes = np.where((down + right) // 6 % 2 == 0, 1.0, 0.8)[..., None]
    out = (pixels.mean(axis=2, keepdims=True) * 0.15 + np.array(_UNSEEN)) * stripes
    for step, (xs, ys) in zip(steps, lines, strict=True):
        strength = np.repeat(np.repeat(step.reached, np.diff(ys), 0), np.diff(xs), 1)[..., None]
        inside: npt.NDArray[np.float64] = pixels[ys[0] : ys[-1], xs[0] : xs[-1]]
        # Rounding may put the last patches of a tile one pixel beyond the canvas.
        part = strength[: inside.shape[0], : inside.shape[1]]
        out[ys[0] : ys[-1], xs[0] : xs[-1]] = dimmed(inside, part)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def _edges(
    pen: ImageDraw.ImageDraw, labels: npt.NDArray[np.int64], xs: list[int], ys: list[int]
) -> None:
    """Draw a line wherever two neighbouring patches, or a patch and the outside, differ."""
    rows, columns = labels.shape
    padded = np.pad(labels, 1, constant_values=-1)
    for row in range(rows + 1):
        for column in range(columns + 1):
            here = padded[row + 1, column + 1]
            x, y = min(xs[column], xs[-1] - 1), min(ys[row], ys[-1] - 1)
            if column < columns and here != padded[row, column + 1]:
                pen.line((x, y, xs[column + 1], y), fill=EDGE)
            if row < rows and here != padded[row + 1, column]:
                pen.line((x, y, x, ys[row + 1]), fill=EDGE)
