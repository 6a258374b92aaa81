"""Pooling tokens on their grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vlmcompress.errors import VLMCompressError
from vlmcompress.tokens import Grid, Reduction


def window(features: Tensor, grid: Grid, shape: tuple[int, int]) -> Reduction:
    """Mean of the tokens in each of a x b adaptive windows; every frame for itself.

    Window i of a over h rows covers rows floor(i*h/a) to ceil((i+1)*h/a), the rule of PyTorch's
    adaptive pooling and of PLLaVA. Where a does not divide h, neighbouring windows share a row, so
    that a token may stand in more than one group.

    Args:
        features: [N, D], N = len(grid), any floating dtype; averaged in float32.
        grid: where the tokens lie.
        shape: (a, b) windows per frame, 1 <= a <= h and 1 <= b <= w.

    Returns:
        t*a*b tokens in the dtype of `features`, in raster order of the windows, with their groups.

    Raises:
        VLMCompressError: the sizes do not fit.
    """
    a, b = shape
    if len(features) != len(grid):
        raise VLMCompressError(f"{len(features)} features do not fit a grid of {grid}")
    if not (1 <= a <= grid.h and 1 <= b <= grid.w):
        raise VLMCompressError(f"cannot make {a}x{b} windows on a grid of {grid}")
    frames = features.float().reshape(grid.t, grid.h, grid.w, -1).movedim(-1, 1)
    means = adaptive_avg_pool2d(frames, (a, b)).movedim(1, -1).flatten(0, 2)
    members, offsets = [], [0]
    for frame in range(grid.t):
        for rows in _spans(grid.h, a):
            for columns in _spans(grid.w, b):
                members += [(frame * grid.h + r) * grid.w + c for r in rows for c in columns]
                offsets.append(len(members))
    return Reduction(
        means.to(features.dtype),
        features.new_tensor(members, dtype=torch.long),
        features.new_tensor(offsets, dtype=torch.long),
    )


def _spans(size: int, parts: int) -> list[range]:
    return [range(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
