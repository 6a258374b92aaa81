"""Video files whose every frame tells its number, and damaged ones."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

STEP = 6
"""Frame i has the red level STEP * i, up to 42 frames."""


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A frame in one colour with a green square that moves to the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = number * STEP % 256
    pixels[height // 2 :, : number % width + 1] = (number * STEP % 256, 200, 0)
    return pixels


def number_of(frame: np.ndarray) -> int:
    """Which frame this is, from its upper quarter; codecs make it up to 3 levels darker."""
    return round((float(np.median(frame[: max(1, len(frame) // 4), :, 0])) + 1.5) / STEP)


def write_clip(
    path: Path,
    frames: int = 40,
    size: tuple[int, int] = (64, 48),
    times: list[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """Write a clip of 10 frames a second, or with these times in milliseconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.gop_size = 12
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = times[number] if times else number * 100
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """A file with sound and no moving picture, and a cover if it is to have one."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        silence = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        if cover:
            still = container.add_stream("mjpeg", rate=1)
            still.width, still.height, still.pix_fmt = 32, 32, "yuvj420p"
            still.disposition = Disposition.attached_pic
            shown = av.VideoFrame.from_ndarray(picture(0, 32, 32), "rgb24")
            container.mux(still.encode(shown.reformat(format="yuvj420p")))
            container.mux(still.encode())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_no_frames(path: Path) -> Path:
    """A container with a video stream and nothing in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def turned(clip: Path, path: Path, matrix: tuple[int, ...]) -> Path:
    """A copy of an MP4 file whose header says that it is to be shown rotated."""
    data = bytearray(clip.read_bytes())
    start = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path
