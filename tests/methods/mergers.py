"""What the tests of mergers share."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlmcompress.methods.mctf import MCTF
from vlmcompress.methods.pitome import PiToMe
from vlmcompress.methods.tome import ToMe
from vlmcompress.tokens import Grid

MERGERS = [ToMe(), PiToMe(), MCTF()]
AFTER = [replace(merger, stage="projector") for merger in MERGERS]
GRIDS = [Grid(1, 1, 1), Grid(1, 4, 4), Grid(1, 3, 5), Grid(1, 1, 7), Grid(4, 3, 3)]
by_name = {"ids": lambda value: getattr(value, "name", None)}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
