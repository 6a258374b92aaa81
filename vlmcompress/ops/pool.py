"""Pooling tokens on their grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.finite import finite
from vlmcompress.tokens import Grid, Reduction

_BYTES = 64 * 2**20
"""Working memory of `strided` for the tokens of windows."""


def window(features: Tensor, grid: Grid, shape: tuple[int, ...]) -> Reduction:
    """Mean of the tokens in each of s x a x b adaptive windows.

    Window i of a over h rows covers rows floor(i*h/a) to ceil((i+1)*h/a), the rule of PyTorch's
    adaptive pooling and of PLLaVA. Where a does not divide h, neighbouring windows share a row, so
    that a token may stand in more than one group.

    Args:
        features: [N, D], N = len(grid), any floating dtype; averaged in float32.
        grid: where the tokens lie.
        shape: (a, b) windows in each frame, 1 <= a <= h and 1 <= b <= w; or (s, a, b) that pool
            time, too, 1 <= s <= t.

    Returns:
        s*a*b tokens in the dtype of `features`, in raster order of the windows, with their groups.

    Raises:
        VLMCompressError: the sizes do not fit, or a row is NaN or infinite.
    """
    s, a, b = shape if len(shape) == 3 else (grid.t, *shape)
    _check(features, grid)
    if not (1 <= s <= grid.t and 1 <= a <= grid.h and 1 <= b <= grid.w):
        raise VLMCompressError(
            f"cannot make {'x'.join(map(str, shape))} windows on a grid of {grid}"
        )
    volume = finite(features).reshape(grid.t, grid.h, grid.w, -1).movedim(-1, 0)
    means = adaptive_avg_pool3d(volume, (s, a, b)).movedim(0, -1).flatten(0, 2)
    members, offsets = [], [0]
    for frames in _spans(grid.t, s):
        for rows in _spans(grid.h, a):
            for columns in _spans(grid.w, b):
                members += [
                    (t * grid.h + r) * grid.w + c for t in frames for r in rows for c in columns
                ]
                offsets.append(len(members))
    return Reduction(
        means.to(features.dtype),
        features.new_tensor(members, dtype=torch.long),
        features.new_tensor(offsets, dtype=torch.long),
    )


def geometry(
    size: int, *, kernel: int | None = None, stride: int | None = None, output: int | None = None
) -> tuple[int, int, int]:
    """(kernel, stride, output) of windows along one axis, from two of them or from the output.

    From kernel and stride: output = (size - kernel) // stride + 1, what is left over is dropped.
    From output alone: stride = size // output, and the kernel that reaches the end, kernel =
    size - (output - 1) * stride; windows may overlap. From output and stride: that kernel. From
    output and kernel: stride = (size - kernel) // (output - 1); one output has no stride, it is
    given the kernel's (the official code divides by zero).

    Raises:
        VLMCompressError: another combination, or one that is impossible on `size`.

    Source: PPLLaVA, arXiv 2411.02327, official code.
    """
    asked = f"kernel {kernel}, stride {stride}, output {output}"
    if output is None:
        if kernel is None or stride is None:
            raise VLMCompressError(f"windows need kernel and stride, or an output, got {asked}")
        output = (size - kernel) // stride + 1 if stride > 0 else 0
    elif kernel is not None:
        if stride is not None:
            raise VLMCompressError(f"windows follow from two of the three, got {asked}")
        stride = (size - kernel) // (output - 1) if output > 1 else kernel
    else:
        stride = size // output if stride is None and output > 0 else stride or 0
        kernel = size - (output - 1) * stride
    if not (1 <= kernel <= size and stride >= 1 and output >= 1):
        raise VLMCompressError(f"no such windows on {size} tokens: {asked}")
    return kernel, stride, output


def strided(
    features: Tensor,
    grid: Grid,
    axes: Sequence[tuple[int, int, int]],
    scores: Tensor | None = None,
) -> Reduction:
    """Weighted means of windows of one size, a fixed step apart.

    Args:
        features: [N, D], N = len(grid), any floating dtype; averaged in float32.
        grid: where the tokens lie.
        axes: (kernel, stride, output) of time, height and width; see `geometry`.
        scores: [N] finite; the weights in a window are their softmax over it. None for a mean.

    Returns:
        One token per window in the dtype of `features`, in raster order, with their groups. Tokens
        in no window are in no group.

    Raises:
        VLMCompressError: the sizes do not fit, or a row is NaN or infinite.

    Source: PPLLaVA, arXiv 2411.02327, section 3.2; M3, arXiv 2405.17430, for the plain mean.
    """
    _check(features, grid)
    sizes = (grid.t, grid.h, grid.w)
    for size, (kernel, stride, output) in zip(sizes, axes, strict=True):
        if min(kernel, stride, output) < 1 or (output - 1) * stride + kernel > size:
            raise VLMCompressError(
                f"{output} windows of {kernel}, {stride} apart, do not fit {size} tokens of a grid "
                f"of {grid}"
            )
    t, h, w = (
        torch.arange(o, device=features.device)[:, None] * s
        + torch.arange(k, device=features.device)
        for k, s, o in axes
    )
    rows = t[:, None, None, :, None, None] * grid.h + h[None, :, None, None, :, None]
    index = (rows * grid.w + w[None, None, :, None, None, :]).flatten(3).flatten(0, 2)
    x, size = finite(features), index.shape[1]
    if scores is None:
        weights = torch.full(index.shape, 1 / size, device=x.device)
    else:
        weights = scores.float()[index].softmax(-1)
    step = max(1, _BYTES // (4 * size * x.shape[1]))
    with torch.autocast(x.device.type, enabled=False):
        pooled = [
            (weights[i : i + step, None] @ x[index[i : i + step]])[:, 0]
            for i in range(0, len(index), step)
        ]
    offsets = torch.arange(len(index) + 1, device=x.device) * size
    return Reduction(torch.cat(pooled).to(features.dtype), index.flatten(), offsets)


def _check(features: Tensor, grid: Grid) -> None:
    if len(features) != len(grid):
        raise VLMCompressError(f"{len(features)} features do not fit a grid of {grid}")


def _spans(size: int, parts: int) -> list[range]:
    return [range(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
