"""Which decoder reads a file."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.clip import Clip
from vlmcompress.media.decoders.decord import DecordClip
from vlmcompress.media.decoders.pyav import PyAVClip
from vlmcompress.media.decoders.torchcodec import TorchcodecClip

AUTO = "auto"
MODULES = {"pyav": "av", "torchcodec": "torchcodec.decoders", "decord": "decord"}
"""Name of a decoder -> the module that it needs; in the order in which they are tried."""

_INSTALL = 'pip install "vlmcompress[video]"'


def installed() -> dict[str, ModuleType]:
    """The decoders that can be imported, the preferred one first."""
    found = {}
    for name in MODULES:
        module = _load(name)
        if module is not None:
            found[name] = module
    return found


def _load(name: str) -> ModuleType | None:
    try:
        importlib.import_module(MODULES[name])
        return importlib.import_module(MODULES[name].partition(".")[0])
    except (ImportError, OSError, RuntimeError):
        return None  # not installed, or its shared libraries do not load on this machine


def check_decoder(name: str) -> None:
    """Raise a MediaError unless there is a decoder of this name."""
    if name != AUTO and name not in MODULES:
        allowed = ", ".join(map(repr, (AUTO, *MODULES)))
        raise MediaError(f"decoder {name!r} is unknown: give one of {allowed}")


def open_clip(file: Path, decoder: str, max_pixels: int) -> Clip:
    """Open `file` with one decoder, by an index that PyAV makes.

    Args:
        file: a regular file.
        decoder: "auto" is PyAV, and where its build lacks the codec, the next that is installed
            and agrees with the index; else the name of one, which must agree with it.
        max_pixels: of a frame; compared with the header before anything is decoded.

    Raises:
        MediaError: `decoder` is unknown, not installed or would give other frames; or the file has
            no video stream or is damaged.
    """
    check_decoder(decoder)
    av = _load("pyav")
    if av is None:
        raise MediaError(
            f"video {str(file)!r} cannot be read: PyAV, which finds the frames for every decoder, "
            f"is not installed: {_INSTALL}"
        )
    clip = PyAVClip(av, file, max_pixels)
    if clip.decodes and decoder in (AUTO, "pyav"):
        return clip
    if decoder != AUTO:
        return _open_other(decoder, file, clip)
    for name in MODULES:
        if name != "pyav" and _load(name) is not None:
            try:
                return _open_other(name, file, clip)
            except MediaError:
                continue
    raise _no_codec(file)


def _open_other(name: str, file: Path, clip: PyAVClip) -> Clip:
    if name == "pyav":
        raise _no_codec(file)
    module = _load(name)
    if module is None:
        raise MediaError(f"decoder {name!r} is not installed: leave it out, or pip install {name}")
    kind = DecordClip if name == "decord" else TorchcodecClip
    return kind(module, file, clip)


def _no_codec(file: Path) -> MediaError:
    return MediaError(f"video {str(file)!r} is in a codec that no installed decoder has")
