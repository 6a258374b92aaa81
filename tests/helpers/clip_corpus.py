"""Small clips of every kind that decoders get wrong; each frame shows its number as blocks.

Each is made by PyAV alone, when the tests run. A kind whose encoder this build lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from clip_files import turned

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


def glued(first: Path, second: Path, path: Path) -> Path:
    """One file after the other."""
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


UNEVEN = [k * 10 + max(0, k - 20) * 10 for k in range(48)]
"""Hundredths of a second; from frame 20 on each is shown twice as long."""
QUARTER_TURN = (0, -0x10000, 0, 0x10000, 0, 0, 0, WIDTH * 0x10000, 0x40000000)
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def _x264(path: Path, **parameters: int) -> Path:
    given = {"keyint": 12, "min-keyint": 12, "scenecut": 0, "b-adapt": 0, **parameters}
    return encode(path, **{"x264-params": ":".join(f"{k}={v}" for k, v in given.items())})


def _x265(path: Path, pixels: str = "yuv420p", **parameters: int) -> Path:
    given = {"keyint": 12, "min-keyint": 12, "scenecut": 0, "bframes": 4, "pools": 1} | parameters
    text = "log-level=none:" + ":".join(f"{k}={v}" for k, v in given.items())
    return encode(path, codec="libx265", pixels=pixels, **{"x265-params": text})


def _open_h264(path: Path) -> Path:
    return _x264(path, **{"bframes": 3, "open-gop": 1})


def _open_hevc(path: Path) -> Path:
    return _x265(path, **{"open-gop": 1})


HIDDEN = (5, 17, 30)
"""Frames of the VP8 clip that others refer to and no player shows."""


def _hidden_vp8(source: Path, path: Path) -> Path:
    """A VP8 clip with the bit that shows a frame taken from some, as encoders do in two passes."""
    encode(source, codec="libvpx")
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        old = given.streams.video[0]
        new = made.add_stream_from_template(old)
        for number, packet in enumerate(given.demux(old)):
            data = bytearray(bytes(packet))
            if not data:
                continue
            if number in HIDDEN:
                data[0] &= ~0x10
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, new
            made.mux(changed)
    return path


def _cut(make: Callable[[Path], Path], name: str, start: int) -> Callable[[Path], Path]:
    """The packets from number `start` on of what `make` makes."""
    return lambda p: copied(make(p / f"whole-{name}.mp4"), p / name, start)


def _glued(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A clip of 20 frames, then what `make` makes."""
    first = {"frames": 20, "bf": "2"}
    return lambda p: glued(encode(p / "a.ts", **first), make(p / "b.ts"), p / "x.ts")


def _plain(name: str, **options: object) -> Callable[[Path], Path]:
    return lambda p: encode(p / name, **options)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[Path], Path]] = {
    "h264, B": _plain("x.mp4", bf="2"),
    "h264, B of B": lambda p: _x264(p / "x.mp4", **{"bframes": 7, "b-pyramid": 2}),
    "h264, open groups": lambda p: _open_h264(p / "x.mp4"),
    "h264, open groups, mkv": lambda p: _open_h264(p / "x.mkv"),
    "h264, open groups, ts": lambda p: _open_h264(p / "x.ts"),
    "h264, intra refresh": lambda p: _x264(p / "x.mkv", **{"intra-refresh": 1, "bframes": 0}),
    "h264, 10 bits": _plain("x.mp4", pixels="yuv420p10le", bf="2"),
    "h264, bare stream": _plain("x.h264", bf="2"),
    "hevc, closed groups": lambda p: _x265(p / "x.mp4", **{"open-gop": 0}),
    "hevc, open groups": lambda p: _open_hevc(p / "x.mp4"),
    "hevc, open groups, ts": lambda p: _open_hevc(p / "x.ts"),
    "hevc, 10 bits": lambda p: _x265(p / "x.mkv", "yuv420p10le", **{"open-gop": 0}),
    "av1": _plain("x.mp4", codec="libsvtav1", preset="12", **{"svtav1-params": "lp=1"}),
    "vp8": _plain("x.webm", codec="libvpx"),
    "vp8, hidden frames": lambda p: _hidden_vp8(p / "whole.webm", p / "x.webm"),
    "vp9": _plain("x.webm", codec="libvpx-vp9"),
    "mpeg4, B": _plain("x.mp4", codec="mpeg4", bf="2"),
    "mpeg2, ts": _plain("x.ts", codec="mpeg2video", bf="2"),
    "mpeg2, ps": _plain("x.mpg", codec="mpeg2video", bf="2"),
    "wmv": _plain("x.wmv", codec="wmv2"),
    "flv": _plain("x.flv", bf="2"),
    "gif": _plain("x.gif", codec="gif", pixels="rgb8"),
    "ffv1": _plain("x.mkv", codec="ffv1"),
    "prores": _plain("x.mov", codec="prores_ks", pixels="yuv422p10le"),
    "avi, mpeg4, B": _plain("x.avi", codec="mpeg4", bf="2"),
    "avi, xvid, B": _plain("x.avi", codec="mpeg4", bf="2", tag="XVID"),
    "avi, h264, B": _plain("x.avi", bf="3"),
    "avi, h264": _plain("x.avi", bf="0"),
    "avi, divx 3": _plain("x.avi", codec="msmpeg4"),
    "avi, mjpeg": _plain("x.avi", codec="mjpeg", pixels="yuvj420p"),
    "avi, repeated frames": _plain("x.avi", codec="mpeg4", bf="0", times=UNEVEN),
    "uneven, mkv": _plain("x.mkv", times=UNEVEN),
    "uneven, mp4": _plain("x.mp4", times=UNEVEN, bf="2"),
    "rotated": lambda p: turned(encode(p / "flat.mp4"), p / "x.mp4", QUARTER_TURN),
    "fragmented": _plain("x.mp4", muxer=FRAGMENTED, bf="2"),
    "one frame": _plain("x.mp4", frames=1),
    "trimmed": lambda p: copied(
        encode(p / "w.mp4", gop=40, bf="2"), p / "x.mp4", shift=Fraction(-17, 10)
    ),
    "begins late": lambda p: copied(
        encode(p / "w.mp4", bf="2"), p / "x.mp4", shift=Fraction(17, 10)
    ),
    "cut in an open group, hevc": _cut(_open_hevc, "x.ts", 12),
    "cut in an open group, h264": _cut(_open_h264, "x.mkv", 12),
    "cut anywhere, ts": _cut(lambda p: encode(p, bf="2"), "x.ts", 5),
    "cut anywhere, mkv": _cut(_open_hevc, "x.mkv", 5),
    "glued": _glued(lambda p: encode(p, 28, first=20, bf="2")),
    "glued, open groups": _glued(
        lambda p: copied(_open_h264(p.with_name("whole.mp4")), p, start=12)
    ),
}


def make_corpus(folder: Path) -> dict[str, Path]:
    """A file of every kind that this build of PyAV has an encoder for."""
    made = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        place = folder / str(number)
        place.mkdir()
        try:
            made[kind] = make(place)
        except (av.codec.codec.UnknownCodecError, av.error.EncoderNotFoundError):
            continue
    return made


def in_order(path: Path) -> list[np.ndarray]:
    """What a player shows: all frames as RGB, none skipped, what cannot be decoded passed over."""
    frames = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                turns = frame.rotation // 90
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return frames
