"""How many samples an MP4 file claims to hold, before FFmpeg makes a table of as many entries.

Where all samples have one size the file gives it once, so that thirty kilobytes can claim a hundred
million of them: gigabytes of table, and seconds in which nothing can interrupt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_FOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_PER_SAMPLE = 0xF00
"""Flags of a `trun` box by which it holds something for each sample."""
_MOST_BOXES = 100_000
_SLACK = 64
"""Old QuickTime counts samples of sound before compression, several to a byte."""


def impossible_claim(file: Path) -> str | None:
    """What is claimed beyond the bytes that there are; None if nothing, or if it is no MP4 file.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(4)
        if opened.read(4) not in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return None
        for seen, (kind, start) in enumerate(_boxes(opened, 0, size)):
            if seen > _MOST_BOXES:
                return None
            opened.seek(start)
            head = opened.read(12)
            if len(head) < 12:
                continue
            flags, first, second = struct.unpack(">III", head)
            count, each = 0, 1
            if kind == b"stsz" and first:
                count, each = second, first
            elif kind == b"trun" and not flags & _PER_SAMPLE:
                count = first
            if count * each > _SLACK * size:
                return f"it claims {count} samples of {each} bytes and holds {size} bytes in all"
    return None


def _boxes(opened: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Type and beginning of the contents of each box, those of its folders after it."""
    while start + 8 <= end:
        opened.seek(start)
        head = opened.read(16)
        if len(head) < 8:
            return
        length, kind, skip = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1 and len(head) == 16:
            length, skip = int.from_bytes(head[8:], "big"), 16
        elif length == 0:
            length = end - start
        if length < skip:
            return
        yield kind, start + skip
        if kind in _FOLDERS:
            yield from _boxes(opened, start + skip, min(start + length, end))
        start += length
