"""What stands below an overlay: method, question, answer, and what the brightness means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmcompress.files.untrusted import visible
from vlmcompress.report.light import EDGE, PAGE, dimmed
from vlmcompress.report.words import Font, wrapped

_SIZE, _LINE, _MARGIN = 15, 21, 2
_SWATCH = (30, 16)
_BLUE = (90, 160, 235)
_SHARES = ((0.0, "dropped"), (0.5, "reaches half of the layers"), (1.0, "all layers"))
_LEAST_WIDTH = 200


def with_footer(page: Image.Image, texts: Sequence[str]) -> Image.Image:
    """The page over texts, each wrapped to its width, and a legend.

    Args:
        page: of `overlay.draw`.
        texts: for example "divprune at 25%" and "question: what is it ?".
    """
    font = ImageFont.load_default(_SIZE)
    room = max(page.width, _LEAST_WIDTH) - 2 * _MARGIN
    lines = [line for text in texts for line in wrapped(visible(text), font, room)]
    rows = _legend_rows(font, room)
    height = page.height + _LINE * (len(lines) + len(rows)) + 2 * _MARGIN
    found = Image.new("RGB", (max(page.width, _LEAST_WIDTH), height), PAGE)
    found.paste(page, (0, 0))
    pen = ImageDraw.Draw(found)
    top = page.height + _MARGIN
    for line in lines:
        pen.text((_MARGIN, top), line, fill="black", font=font)
        top += _LINE
    for row in rows:
        left = _MARGIN
        for share, words in row:
            _swatch(found, pen, share, (left, top + 2))
            pen.text((left + _SWATCH[0] + 6, top), words, fill="black", font=font)
            left += _entry_width(words, font)
        top += _LINE
    return found


def _swatch(page: Image.Image, pen: ImageDraw.ImageDraw, share: float, at: tuple[int, int]) -> None:
    """A patch as bright as one that reaches this share of the decoder's layers."""
    width, height = _SWATCH
    color = dimmed(np.array([[_BLUE]], float), np.array([[[share]]]))[0, 0]
    red, green, blue = (int(value) for value in color)
    outline = EDGE if share > 0 else (red, green, blue)
    corner = (at[0] + width, at[1] + height)
    pen.rectangle((*at, *corner), fill=(red, green, blue), outline=outline)


def _legend_rows(font: Font, room: int) -> list[list[tuple[float, str]]]:
    """The entries in as many rows as they need."""
    rows: list[list[tuple[float, str]]] = [[]]
    left = room
    for entry in _SHARES:
        left -= _entry_width(entry[1], font)
        if left < 0 and rows[-1]:
            rows.append([])
            left = room - _entry_width(entry[1], font)
        rows[-1].append(entry)
    return rows


def _entry_width(words: str, font: Font) -> int:
    return _SWATCH[0] + 6 + round(font.getlength(words)) + 16
