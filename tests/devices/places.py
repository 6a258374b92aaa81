"""Which line of whose code asked for an operation."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import vlmcompress

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(vlmcompress.__file__).parent)
_HERE = str(Path(__file__).parent)


def place() -> str:
    """The innermost line outside of torch and of this harness."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _HERE)):
            return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "?"


def own_place(found: str) -> bool:
    """Whether the line is one of this project."""
    return found.startswith(_OWN)
