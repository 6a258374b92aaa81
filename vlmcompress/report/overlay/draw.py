"""Images and clips of a call, side by side.

An image that is laid out as tiles is shown once for its overview and once for its tiles. A clip
becomes a sheet with one tile for each temporal step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlmcompress.errors import VLMCompressError
from vlmcompress.media.video import Video
from vlmcompress.report.light import PAGE
from vlmcompress.report.numbers import mean_text
from vlmcompress.report.overlay.boxes import Box, part_boxes, visible_box
from vlmcompress.report.overlay.panel import panel
from vlmcompress.report.overlay.steps import Step, steps_of
from vlmcompress.report.report import ImageReport, by_medium, entry
from vlmcompress.report.words import Font, wrapped

_LARGEST = 1600
_GAP, _CAPTION, _LEADING, _MARGIN = 12, 26, 6, 2
_SMALL = 12
"""Letters below the frames of a clip."""
_CELL = 180
"""What a caption may widen the cell of a narrow picture to, before it is wrapped."""
SHEET = 1600
"""Width of a sheet of tiles at most; tiles shrink where there are many."""
_TILES = (320, 200, 128)
"""Longer side of a tile with up to 16 and up to 64 of them, and with more."""


def draw(
    media: Sequence[Image.Image | Video],
    reports: Sequence[ImageReport],
    processor: Any,
    side: int = 480,
    layer: int | None = None,
    width: int = SHEET,
) -> Image.Image:
    """Images and clips side by side as the decoder got them, each over a line with token counts.

    A patch is as bright as the share of decoder layers that it reaches. A line runs around kept
    patches, or around the members of each merged token with its anchor marked. Grey is what the
    processor cropped away before the model saw anything. The tiles of an image are drawn where they
    were cut out of it, beside its overview. A clip is shown as tiles: the first frame of each
    temporal step over the step's time and the number of its tokens that enter the decoder.

    Args:
        media: as they were given to the processor.
        reports: those of the call.
        processor: the model's processor, for where the patches lie.
        side: the longer side of an image is enlarged to at least this many pixels.
        layer: shows what enters this decoder layer instead.
        width: of the frames of a clip beside each other at most.

    Raises:
        VLMCompressError: media and reports do not go together, the decoder has no such layer, or it
            cannot be told where the tiles of an image lie.
    """
    frames = [len(one.frames) if isinstance(one, Video) else 1 for one in media]
    shared = by_medium(reports, frames)
    panels: list[Image.Image] = []
    captions: list[str] = []
    for one, own in zip(media, shared, strict=True):
        caption = (
            f"{sum(r.before for r in own)} -> {sum(r.after for r in own)} tokens{entry(own)}, "
            f"mean over layers {mean_text(sum(r.mean for r in own))}"
        )
        if isinstance(one, Video):
            shown, more = [_sheet(one, own, processor, layer, width)], [caption]
        else:
            shown, more = _single(one, steps_of(own, layer), processor, side)
            more = [caption] if not more else [more[0], f"{more[1]}; in all {caption}"]
        panels, captions = panels + shown, captions + more
    return side_by_side(panels, captions, columns=len(panels))


def side_by_side(
    panels: Sequence[Image.Image], captions: Sequence[str], columns: int, size: int = 15
) -> Image.Image:
    """Panels in rows, each over its caption, which is wrapped and may widen the cell of a narrow
    panel; the cells are as high as the highest of all."""
    font = ImageFont.load_default(size)
    rows = [range(k, min(k + columns, len(panels))) for k in range(0, len(panels), columns)]
    cells = _cells(panels, captions, font)
    lines = [wrapped(c, font, cells[k] - 2 * _MARGIN) for k, c in enumerate(captions)]
    height = max(panel.height for panel in panels)
    height += (_CAPTION + (max(map(len, lines)) - 1) * (size + _LEADING)) * any(captions)
    widths = [sum(cells[k] for k in row) + _GAP * (len(row) - 1) for row in rows]
    page = Image.new("RGB", (max(widths), height * len(rows)), PAGE)
    pen = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        left = 0
        for k in row:
            page.paste(panels[k], (left, number * height))
            for depth, line in enumerate(lines[k]):
                down = panels[k].height + 5 + depth * (size + _LEADING)
                place = (left + _MARGIN, number * height + down)
                pen.text(place, line, fill="black", font=font)
            left += cells[k] + _GAP
    return page


def _cells(panels: Sequence[Image.Image], captions: Sequence[str], font: Font) -> list[int]:
    """Widths in which panels fit, and captions where need be in several lines."""
    least = [min(math.ceil(font.getlength(text)) + 2 * _MARGIN, _CELL) for text in captions]
    return [max(one.width, width) for one, width in zip(panels, least, strict=True)]


def _single(
    image: Image.Image, steps: Sequence[Step], processor: Any, side: int
) -> tuple[list[Image.Image], list[str]]:
    """An image with its patches, or the same image once for its overview and once for its tiles.

    Returns:
        One panel and no caption; or two, each with what it shows.
    """
    longest = max(image.size)
    scale = min(max(side / longest, 1.0), max(_LARGEST / longest, 1e-6))
    pieces = list(zip(part_boxes(image.size, processor, len(steps)), steps, strict=True))
    if len(pieces) == 1:
        return [panel(image, pieces, scale)], []
    # Where all of them cover the image (LLaVA-NeXT), the first is the overview.
    whole = [piece for piece in pieces if piece[0].covers(image.size)]
    overview = whole[:1] if len(whole) == len(pieces) else whole
    tiles = [piece for piece in pieces if not any(piece is one for one in overview)]
    views = [("overview", overview), ("tiles", tiles)]
    found = [(name, own) for name, own in views if own]
    captions = [f"{name}: {sum(step.kept for _, step in own)} kept" for name, own in found]
    if len(found) == 1:  # tiles without an overview
        return [panel(image, tiles, scale)], []
    return [panel(image, own, scale) for _, own in found], captions


def _sheet(
    video: Video, reports: Sequence[ImageReport], processor: Any, layer: int | None, room: int
) -> Image.Image:
    """One tile for each temporal step of a clip, its first frame."""
    steps = steps_of(reports, layer)
    if len(steps) > len(video.frames):
        raise VLMCompressError("an overlay cannot show a clip whose frames are laid out as tiles")
    each = math.ceil(len(video.frames) / len(steps))
    height, width = video.frames.shape[1:3]
    # Frames may go a way of their own: cropped, for example, where images are not.
    settings = getattr(processor, "video_processor", None) or processor
    box: Box = visible_box((width, height), settings)
    scale = _TILES[(len(steps) > 16) + (len(steps) > 64)] / max(width, height)
    tiles, captions = [], []
    for number, step in enumerate(steps):
        frame = Image.fromarray(video.frames[number * each])
        tiles.append(panel(frame, [(box, step)], scale))
        captions.append(f"{video.times[number * each]:.2f} s: {step.kept} kept")
    cell = max(_cells(tiles, captions, ImageFont.load_default(_SMALL)))
    columns = max(1, (room + _GAP) // (cell + _GAP))
    return side_by_side(tiles, captions, min(columns, len(tiles)), size=_SMALL)
