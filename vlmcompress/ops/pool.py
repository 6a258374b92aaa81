"""Pooling tokens on their grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.backend import use_triton
from vlmcompress.ops.finite import finite
from vlmcompress.ops.groups import segment_sum
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import Grid, Reduction


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
    spans = [
        _adaptive(*axis, features.device)
        for axis in zip((grid.t, grid.h, grid.w), (s, a, b), strict=True)
    ]
    return _pooled(features, grid, spans, None)


def similar(features: Tensor, pooled: Reduction, temperature: float) -> Reduction:
    """The same windows as `pooled`, in which tokens like the window's mean weigh more.

    Weights are the softmax, over a window, of the cosine of each token and the plain mean, divided
    by the temperature. A window without a direction keeps the plain mean.

    Args:
        features: [N, D] that were pooled, any floating dtype; averaged in float32.
        pooled: windows of them; its features are not looked at.
        temperature: above 0.

    Returns:
        The weighted means in the dtype of `features`, with the groups of `pooled`.
    """
    x, members, offsets = finite(features), pooled.members, pooled.offsets
    sizes, places = offsets.diff(), torch.arange(len(members), device=members.device)
    window = torch.arange(len(sizes), device=sizes.device)
    window = window.repeat_interleave(sizes, output_size=len(members))
    means = unit_rows(segment_sum(x, members, offsets))
    with torch.autocast(x.device.type, enabled=False):
        alike = (unit_rows(x)[members] * means[window]).sum(-1) / temperature
        most = alike.new_full((len(sizes),), -torch.inf).scatter_reduce(0, window, alike, "amax")
        weights = (alike - most[window]).exp()
        weights = weights / segment_sum(weights[:, None], places, offsets)[window, 0]
    found = segment_sum(x, members, offsets, weights)
    return Reduction(found.to(features.dtype), members, offsets)


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
    spans = []
    for kernel, stride, output in axes:
        starts = torch.arange(output, device=features.device) * stride
        spans.append(_Spans(starts, torch.full_like(starts, kernel), kernel * output))
    return _pooled(features, grid, spans, scores)


@dataclass(frozen=True)
class _Spans:
    """What the windows cover of one axis."""

    starts: Tensor
    """[P] int64."""
    sizes: Tensor
    """[P] int64, at least 1."""
    total: int
    """Sum of the sizes, known without asking the device."""


def _adaptive(size: int, parts: int, device: torch.device) -> _Spans:
    places = torch.arange(parts, device=device)
    starts = places * size // parts
    total = sum(-(-(i + 1) * size // parts) - i * size // parts for i in range(parts))
    return _Spans(starts, -(-(places + 1) * size // parts) - starts, total)


def _pooled(
    features: Tensor, grid: Grid, spans: Sequence[_Spans], scores: Tensor | None
) -> Reduction:
    """Windows of all axes with each other; with `scores` all are of one size."""
    x = finite(features)
    members, offsets = _groups(grid, spans)
    sizes = {"N": len(x), "K": len(offsets) - 1, "D": x.shape[1]}
    if use_triton("pool", features, **sizes, scored=scores is not None):
        from vlmcompress.ops._triton.pool import pool as kernel

        bounds = [torch.stack([axis.starts, axis.sizes], 1) for axis in spans]
        pooled = kernel(features.detach(), grid, bounds, scores)
    elif scores is None:
        pooled = segment_sum(x, members, offsets) / offsets.diff()[:, None]
    else:
        weights = scores.float()[members].view(len(offsets) - 1, -1).softmax(-1).flatten()
        pooled = segment_sum(x, members, offsets, weights)
    return Reduction(pooled.to(features.dtype), members, offsets)


def _groups(grid: Grid, spans: Sequence[_Spans]) -> tuple[Tensor, Tensor]:
    """Members and offsets of all windows, as in `Reduction`."""
    t, h, w = spans
    sizes = (t.sizes[:, None, None] * h.sizes[:, None] * w.sizes).flatten()
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    windows, total = torch.arange(len(sizes), device=sizes.device), t.total * h.total * w.total
    # Of each member: its window, that window's place on each axis, and its own in the window.
    window = windows.repeat_interleave(sizes, output_size=total)
    i, j, k = window // (len(h.sizes) * len(w.sizes)), window // len(w.sizes), window % len(w.sizes)
    j = j % len(h.sizes)
    place = torch.arange(total, device=sizes.device) - offsets[window]
    line, column = place // w.sizes[k], place % w.sizes[k]
    frame, row = line // h.sizes[j], line % h.sizes[j]
    rows = (t.starts[i] + frame) * grid.h + h.starts[j] + row
    return rows * grid.w + w.starts[k] + column, offsets


def _check(features: Tensor, grid: Grid) -> None:
    if len(features) != len(grid):
        raise VLMCompressError(f"{len(features)} features do not fit a grid of {grid}")
