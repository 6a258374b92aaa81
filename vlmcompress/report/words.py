"""Words in a picture."""

from __future__ import annotations

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""What Pillow has by itself, with FreeType and without."""

_MOST_LINES = 3
"""Of each text; a long answer ends in dots."""


def wrapped(text: str, font: Font, room: float) -> list[str]:
    """Lines that fit into `room` pixels; words are cut only where one alone is too long."""
    lines = [""]
    for word in text.split():
        for part in _parts(word, font, room):
            longer = f"{lines[-1]} {part}".strip()
            if font.getlength(longer) <= room:
                lines[-1] = longer
            else:
                lines.append(part)
        if len(lines) > _MOST_LINES:
            return [*lines[: _MOST_LINES - 1], _shortened(lines[_MOST_LINES - 1], font, room)]
    return lines


def _parts(word: str, font: Font, room: float) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) > room:
            parts.append("")
        parts[-1] += letter
        if len(parts) > _MOST_LINES:
            break
    return parts


def _shortened(line: str, font: Font, room: float) -> str:
    while line and font.getlength(f"{line} ...") > room:
        line = line[:-1]
    return f"{line} ..."
