"""A picture of what a method kept: dropped patches are dimmed, merged ones outlined.

A clip becomes a sheet with one tile for each temporal step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vlmcompress.errors import VLMCompressError
from vlmcompress.media.video import Video
from vlmcompress.report.light import EDGE, PAGE, dimmed
from vlmcompress.report.report import ImageReport, by_medium

_LARGEST = 1600
_PADDING = (96, 96, 96)
_UNSEEN = (58, 58, 64)
_ANCHOR = (80, 220, 255)
_GAP, _CAPTION = 12, 26
_SHEET = 1600
"""Width of a sheet of tiles at most; tiles shrink where there are many."""
_TILES = (320, 200, 128)
"""Longer side of a tile with up to 16 and up to 64 of them, and with more."""


class Box(NamedTuple):
    """A rectangle in pixels of the image as it was read; it may reach beyond the image."""

    left: float
    top: float
    right: float
    bottom: float


class Step(NamedTuple):
    """The patches of an image, or of one temporal step of a clip."""

    reached: npt.NDArray[np.float64]
    """[H, W] share of the decoder layers that each patch reaches."""
    labels: npt.NDArray[np.int64]
    """[H, W] which token a patch went into: equal ones are not divided by a line, -1 is none."""
    anchors: list[tuple[int, int]]
    """Row and column of the smallest member of each merged token."""
    kept: int
    """Tokens that enter the decoder."""


def visible_box(size: tuple[int, int], processor: Any) -> Box:
    """The part of an image that the patch grid covers.

    Follows what a CLIP or LLaVA image processor does, in its order: pad to a square, resize, crop
    the centre. A processor without these settings is taken to show the whole image.

    Args:
        size: width and height of the image.
        processor: the model's processor, or its image processor or video processor.
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
    """[T, H, W] share of the decoder layers that a patch reaches, itself or in a merged token.

    Raises:
        VLMCompressError: the image is laid out as several grids, tiles for example.
    """
    if len(report.parts) > 1:
        raise VLMCompressError(
            f"an overlay shows one grid, but image {report.index} is laid out as "
            f"{len(report.parts)} (tiles)"
        )
    layers = max(len(report.per_layer), 1)
    reached = np.zeros(report.before)
    current = report.kept
    for layer in range(layers):
        current = report.cuts.get(layer, current)
        reached[current] += 1
    for members in report.groups or []:
        reached[members] = reached[min(members)]
    return (reached / layers).reshape(report.grid)


def draw(
    media: Sequence[Image.Image | Video],
    reports: Sequence[ImageReport],
    processor: Any,
    side: int = 480,
) -> Image.Image:
    """Images and clips side by side as the decoder got them, each over a line with token counts.

    A patch is as bright as the share of decoder layers that it reaches. A line runs around kept
    patches, or around the members of each merged token with its anchor marked. Grey is what the
    processor cropped away before the model saw anything. A clip is shown as tiles: the first frame
    of each temporal step over the step's time and the number of its tokens that enter the decoder.

    Args:
        media: as they were given to the processor.
        reports: those of the call.
        processor: the model's processor, for where the patches lie.
        side: the longer side of an image is enlarged to at least this many pixels.

    Raises:
        VLMCompressError: media and reports do not go together, or an image is laid out in tiles.
    """
    frames = [len(one.frames) if isinstance(one, Video) else 1 for one in media]
    shared = by_medium(reports, frames)
    panels = [
        _sheet(one, own, processor)
        if isinstance(one, Video)
        else _single(one, _steps(own)[0], processor, side)
        for one, own in zip(media, shared, strict=True)
    ]
    captions = [
        f"{sum(r.before for r in own)} -> {sum(r.after for r in own)} tokens, "
        f"mean over layers {sum(r.mean for r in own):g}"
        for own in shared
    ]
    return _captioned(panels, captions, columns=len(panels))


def _captioned(
    panels: Sequence[Image.Image], captions: Sequence[str], columns: int, size: int = 15
) -> Image.Image:
    """Panels in rows, each over its line; the cells are as large as the largest panel of all."""
    rows = [range(k, min(k + columns, len(panels))) for k in range(0, len(panels), columns)]
    height = max(panel.height for panel in panels) + _CAPTION
    widths = [sum(panels[k].width for k in row) + _GAP * (len(row) - 1) for row in rows]
    page = Image.new("RGB", (max(widths), height * len(rows)), PAGE)
    pen = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        left = 0
        for k in row:
            page.paste(panels[k], (left, number * height))
            place = (left + 2, number * height + panels[k].height + 5)
            pen.text(place, captions[k], fill="black", font=ImageFont.load_default(size))
            left += panels[k].width + _GAP
    return page


def _single(image: Image.Image, step: Step, processor: Any, side: int) -> Image.Image:
    longest = max(image.size)
    scale = min(max(side / longest, 1.0), max(_LARGEST / longest, 1e-6))
    return _panel(image, step, visible_box(image.size, processor), scale)


def _sheet(video: Video, reports: Sequence[ImageReport], processor: Any) -> Image.Image:
    """One tile for each temporal step of a clip, its first frame."""
    steps = _steps(reports)
    each = math.ceil(len(video.frames) / len(steps))
    height, width = video.frames.shape[1:3]
    # Frames may go a way of their own: cropped, for example, where images are not.
    settings = getattr(processor, "video_processor", None) or processor
    box = visible_box((width, height), settings)
    scale = _TILES[(len(steps) > 16) + (len(steps) > 64)] / max(width, height)
    tiles, captions = [], []
    for number, step in enumerate(steps):
        frame = Image.fromarray(video.frames[number * each])
        tiles.append(_panel(frame, step, box, scale))
        captions.append(f"{video.times[number * each]:.2f} s: {step.kept} kept")
    columns = max(1, (_SHEET + _GAP) // (tiles[0].width + _GAP))
    return _captioned(tiles, captions, min(columns, len(tiles)), size=12)


def _steps(reports: Sequence[ImageReport]) -> list[Step]:
    """What is drawn of each temporal step, over all reports of an image or clip."""
    steps = []
    for report in reports:
        reached, (_, rows, columns) = survival(report), report.grid
        anchors = [min(members) for members in report.groups or []]
        for number, labels in enumerate(_labels(report, reached)):
            own = [a - number * rows * columns for a in anchors if a // (rows * columns) == number]
            places = [divmod(anchor, columns) for anchor in own]
            kept = report.per_frame["after"][number]
            steps.append(Step(reached[number], labels, places, kept))
    return steps


def _panel(image: Image.Image, step: Step, box: Box, scale: float) -> Image.Image:
    """One picture with its patches, on a canvas that holds the picture and the whole grid."""
    origin = min(0.0, box.left), min(0.0, box.top)
    corner = max(image.width, box.right), max(image.height, box.bottom)
    canvas_size = tuple(max(1, round((b - a) * scale)) for a, b in zip(origin, corner, strict=True))
    canvas = Image.new("RGB", (canvas_size[0], canvas_size[1]), _PADDING)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    enlarged = image.convert("RGB").resize(inner, Image.Resampling.BICUBIC)
    canvas.paste(enlarged, (round(-origin[0] * scale), round(-origin[1] * scale)))

    rows, columns = step.reached.shape
    xs = [
        round((box.left - origin[0] + (box.right - box.left) * k / columns) * scale)
        for k in range(columns + 1)
    ]
    ys = [
        round((box.top - origin[1] + (box.bottom - box.top) * k / rows) * scale)
        for k in range(rows + 1)
    ]
    shown = _dim(canvas, step.reached, xs, ys)
    pen = ImageDraw.Draw(shown)
    _edges(pen, step.labels, xs, ys)
    for row, column in step.anchors:
        pen.rectangle((xs[column] + 2, ys[row] + 2, xs[column] + 7, ys[row] + 7), fill=_ANCHOR)
    return shown


def _dim(
    canvas: Image.Image, reached: npt.NDArray[np.float64], xs: list[int], ys: list[int]
) -> Image.Image:
    """Darken and grey each patch by the layers that it misses; hatch what lies outside the grid."""
    pixels = np.asarray(canvas, dtype=np.float64)
    height, width, _ = pixels.shape
    strength = np.repeat(np.repeat(reached, np.diff(ys), 0), np.diff(xs), 1)[..., None]
    inside = pixels[ys[0] : ys[-1], xs[0] : xs[-1]]
    down, right = np.mgrid[:height, :width]
    stripes = np.where((down + right) // 6 % 2 == 0, 1.0, 0.8)[..., None]
    out = (pixels.mean(axis=2, keepdims=True) * 0.15 + np.array(_UNSEEN)) * stripes
    out[ys[0] : ys[-1], xs[0] : xs[-1]] = dimmed(inside, strength)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def _labels(report: ImageReport, reached: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """[T, H, W] the labels of all steps."""
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
                pen.line((x, y, xs[column + 1], y), fill=EDGE)
            if row < rows and here != padded[row + 1, column]:
                pen.line((x, y, x, ys[row + 1]), fill=EDGE)
