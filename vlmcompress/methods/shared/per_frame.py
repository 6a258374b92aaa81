"""Clips frame by frame, for methods whose papers work on one image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlmcompress.ops.apportion import even
from vlmcompress.tokens import Grid


def frame_quotas(grid: Grid, count: int) -> list[tuple[slice, int]]:
    """The frames that keep anything, as slices of the raster order, and how many tokens each keeps.

    `count`, clamped to 0..N, is spread evenly: quotas differ by one at most.
    """
    size = grid.h * grid.w
    quotas = even(max(0, min(count, len(grid))), grid.t).tolist()
    return [
        (slice(frame * size, (frame + 1) * size), quota)
        for frame, quota in enumerate(quotas)
        if quota
    ]


def select_by_frame(
    grid: Grid, count: int, choose: Callable[[slice, int], Tensor], device: torch.device
) -> Tensor:
    """[count] int64, ascending: what `choose` picks of each frame.

    Args:
        grid: of the clip, or of an image.
        count: to pick of all frames, clamped to 0..N.
        choose: (tokens of a frame, its quota) -> unique indices within the frame, in any order.
        device: of the result.
    """
    picks = [torch.empty(0, dtype=torch.long, device=device)]
    for own, quota in frame_quotas(grid, count):
        picks.append(choose(own, quota).sort().values + own.start)
    return torch.cat(picks)
