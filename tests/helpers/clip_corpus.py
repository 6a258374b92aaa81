"""Small clips of every kind that decoders get wrong; each frame shows its number in black and white.

Each is made by PyAV alone, when the tests run. A kind whose encoder this build lacks is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
RATE = 10
_BITS = 8
_CELL = 16
"""Pixels a side of a cell; 4 x 3 of them fit, of which 8 hold the bits."""


def numbered(number: int) -> np.ndarray:
    """[H, W, 3] whose first 8 cells are white where a bit of `number` is set; noise below."""
    pixels = np.random.default_rng(number).integers(90, 160, (HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, WIDTH // _CELL)
        white = number >> bit & 1
        cell = (slice(row * _CELL, (row + 1) * _CELL), slice(column * _CELL, (column + 1) * _CELL))
        pixels[cell] = 235 if white else 16
    return pixels


def read_number(frame: np.ndarray) -> int:
    """The number that a frame shows; -1 if a cell is neither black nor white."""
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, WIDTH // _CELL)
        top, left = row * _CELL + 3, column * _CELL + 3
        level = float(frame[top : top + _CELL - 6, left : left + _CELL - 6].mean())
        if 90 < level < 160:
            return -1
        number |= int(level > 128) << bit
    return number


def encode(
    path: Path,
    frames: int = 48,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Iterable[int] | None = None,
    first: int = 0,
    tag: str | None = None,
    gop: int = 12,
    muxer: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames `first`, `first + 1`, ... at 10 a second, or at these times in 1/100 seconds."""
    shown = list(times) if times is not None else [k * 100 // RATE for k in range(frames)]
    with av.open(str(path), "w", container_options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, pixels, gop
        if tag is not None:
            stream.codec_context.codec_tag = tag
        unit = Fraction(1, 100) if times is not None else Fraction(1, RATE)
        stream.codec_context.time_base = unit
        for number, time in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(numbered(first + number), "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = time if times is not None else number
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copied(
    source: Path, path: Path, start: int = 0, shift: Fraction = Fraction(0), **muxer: str
) -> Path:
    """The packets of a file from number `start` on, without re-encoding, `shift` seconds later."""
    with av.open(str(source)) as given, av.open(str(path), "w", container_options=muxer) as made:
        old = given.streams.video[0]
        new = made.add_stream_from_template(old)
        for number, packet in enumerate(given.demux(old)):
            if packet.size and number >= start:
                moved = int(shift / packet.time_base)
                packet.pts += moved
                packet.dts += moved
                packet.stream = new
                made.mux(packet)
    return path


def turned(clip: Path, path: Path, matrix: tuple[int, ...]) -> Path:
    """A copy of an MP4 file whose header says that it is to be shown rotated."""
    data = bytearray(clip.read_bytes())
    start = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def glued(first: Path, second: Path, path: Path) -> Path:
    """One file after the other."""
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path
