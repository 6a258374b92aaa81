"""A picture of what a method kept: dropped patches are dimmed, merged ones outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vlmcompress.errors import VLMCompressError
from vlmcompress.report import ImageReport

_DROPPED = 0.4
"""Brightness of a patch that never enters the decoder; 1 is the image itself."""
_LARGEST = 1600
_PADDING = (96, 96, 96)
_UNSEEN = (58, 58, 64)
_EDGE = (255, 200, 40)
_ANCHOR = (80, 220, 255)
_PAGE = (255, 255, 255)
_GAP, _CAPTION = 12, 26


class Box(NamedTuple):
    """A rectangle in pixels of the image as it was read; it may reach beyond the image."""

    left: float
    top: float
    right: float
    bottom: float


def visible_box(size: tuple[int, int], processor: Any) -> Box:
    """The part of an image that the patch grid covers.

    Follows what a CLIP or LLaVA image processor does, in its order: pad to a square, resize, crop
    the centre. A processor without these settings is taken to show the whole image.

    Args:
        size: width and height of the image.
        processor: the model's processor, or its image processor.
    """
    settings = getattr(processor, "image_processor", processor)
    width, height = size
    pad_x = pad_y = 0
    if getattr(settings, "do_pad", False) and hasattr(settings, "pad_to_square"):
        side = max(size)
        pad_x, pad_y = (side - width) // 2, (side - height) // 2
        width = height = side
    resized_width, resized_height = _resized(width, height, settings)
    left = top = 0
    shown_width, shown_height = resized_width, resized_height
    if getattr(settings, "do_center_crop", False):
        crop = settings.crop_size
        shown_width, shown_height = int(crop["width"]), int(crop["height"])
        left = (resized_width - shown_width) // 2
        top = (resized_height - shown_height) // 2
    x, y = width / resized_width, height / resized_height
    return Box(
        left * x - pad_x,
        top * y - pad_y,
        (left + shown_width) * x - pad_x,
        (top + shown_height) * y - pad_y,
    )


def _resized(width: int, height: int, settings: Any) -> tuple[int, int]:
    size = getattr(settings, "size", None)
    if not getattr(settings, "do_resize", False) or size is None:
        return width, height
    edge, fixed_width, fixed_height = (
        _get(size, key) for key in ("shortest_edge", "width", "height")
    )
    if edge:
        # transformers cuts the longer side down to an integer, it does not round.
        if width <= height:
            return edge, int(edge * height / width)
        return int(edge * width / height), edge
    if fixed_width and fixed_height:
        return fixed_width, fixed_height
    return width, height


def _get(size: Any, key: str) -> int | None:
    value = size.get(key) if hasattr(size, "get") else getattr(size, key, None)
    return None if value is None else int(value)


def survival(report: ImageReport) -> npt.NDArray[np.float64]:
    """[H, W] share of the decoder layers that each patch reaches, itself or in a merged token."""
    t, height, width = report.grid
    if t != 1:
        raise VLMCompressError(f"an overlay shows images, image {report.index} has {t} frames")
    layers = max(len(report.per_layer), 1)
    reached = np.zeros(height * width)
    current = report.kept
    for layer in range(layers):
        current = report.cuts.get(layer, current)
        reached[current] += 1
    for members in report.groups or []:
        reached[members] = reached[min(members)]
    return (reached / layers).reshape(height, width)


def draw(
    images: Sequence[Image.Image],
    reports: Sequence[ImageReport],
    processor: Any,
    side: int = 480,
) -> Image.Image:
    """The images side by side as the decoder got them, each over a line with its token counts.

    A patch is as bright as the share of decoder layers that it reaches. A line runs around kept
    patches, or around the members of each merged token with its anchor marked. Grey is what the
    processor cropped away before the model saw anything.

    Args:
        images: as they were given to the processor.
        reports: one for each image.
        processor: the model's processor, for where the patches lie.
        side: the longer side of an image is enlarged to at least this many pixels.
    """
    if len(images) != len(reports):
        raise VLMCompressError(f"{len(images)} images but {len(reports)} image reports")
    panels = [
        _panel(image, report, visible_box(image.size, processor), side)
        for image, report in zip(images, reports, strict=True)
    ]
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
    height = max(panel.height for panel in panels)
    page = Image.new("RGB", (width, height + _CAPTION), _PAGE)
    pen = ImageDraw.Draw(page)
    left = 0
    for panel, report in zip(panels, reports, strict=True):
        page.paste(panel, (left, 0))
        pen.text(
            (left + 2, panel.height + 5),
            f"{report.before} -> {report.after} tokens, mean over layers {report.mean:g}",
            fill="black",
            font=ImageFont.load_default(15),
        )
        left += panel.width + _GAP
    return page


def _panel(image: Image.Image, report: ImageReport, box: Box, side: int) -> Image.Image:
    """One image with its patches, on a canvas that holds the image and the whole grid."""
    longest = max(image.size)
    scale = min(max(side / longest, 1.0), max(_LARGEST / longest, 1e-6))
    origin = min(0.0, box.left), min(0.0, box.top)
    corner = max(image.width, box.right), max(image.height, box.bottom)
    canvas_size = tuple(max(1, round((b - a) * scale)) for a, b in zip(origin, corner, strict=True))
    canvas = Image.new("RGB", (canvas_size[0], canvas_size[1]), _PADDING)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    enlarged = image.convert("RGB").resize(inner, Image.Resampling.BICUBIC)
    canvas.paste(enlarged, (round(-origin[0] * scale), round(-origin[1] * scale)))

    _, rows, columns = report.grid
    xs = [
        round((box.left - origin[0] + (box.right - box.left) * k / columns) * scale)
        for k in range(columns + 1)
    ]
    ys = [
        round((box.top - origin[1] + (box.bottom - box.top) * k / rows) * scale)
        for k in range(rows + 1)
    ]
    reached = survival(report)
    shown = _dim(canvas, reached, xs, ys)
    pen = ImageDraw.Draw(shown)
    labels = _labels(report, reached)
    _edges(pen, labels, xs, ys)
    for members in report.groups or []:
        row, column = divmod(min(members), columns)
        pen.rectangle((xs[column] + 2, ys[row] + 2, xs[column] + 7, ys[row] + 7), fill=_ANCHOR)
    return shown


def _dim(
    canvas: Image.Image, reached: npt.NDArray[np.float64], xs: list[int], ys: list[int]
) -> Image.Image:
    """Darken and grey each patch by the layers that it misses; hatch what lies outside the grid."""
    pixels = np.asarray(canvas, dtype=np.float64)
    height, width, _ = pixels.shape
    strength = np.repeat(np.repeat(reached, np.diff(ys), 0), np.diff(xs), 1)[..., None]
    light = _DROPPED + (1 - _DROPPED) * strength
    inside = pixels[ys[0] : ys[-1], xs[0] : xs[-1]]
    grey = inside.mean(axis=2, keepdims=True)
    down, right = np.mgrid[:height, :width]
    stripes = np.where((down + right) // 6 % 2 == 0, 1.0, 0.8)[..., None]
    out = (pixels.mean(axis=2, keepdims=True) * 0.15 + np.array(_UNSEEN)) * stripes
    color = (1 + strength) / 2
    out[ys[0] : ys[-1], xs[0] : xs[-1]] = light * (color * inside + (1 - color) * grey)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def _labels(report: ImageReport, reached: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """[H, W] which token a patch went into: equal labels are not divided by a line, -1 is none."""
    if report.groups is None:
        return np.where(reached > 0, 0, -1)
    labels = np.full(reached.size, -1)
    for number, members in enumerate(report.groups):
        labels[members] = number
    return labels.reshape(reached.shape)


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
                pen.line((x, y, xs[column + 1], y), fill=_EDGE)
            if row < rows and here != padded[row + 1, column]:
                pen.line((x, y, x, ys[row + 1]), fill=_EDGE)
