"""Choosing tokens: float32 inside, ties to the lowest index, the count clamped to [1, N]."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.backend import use_triton
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.farthest_point_cpu import farthest
from vlmcompress.ops.similarity import (
    MATRIX_BYTES,
    ROUNDING,
    Cosines,
    check_norms,
    directions,
    self_cosines,
    unit_rows,
)

# Above every cosine, below +inf: rows without a direction wait until all others are taken.
_LAST = 3.0
# Up to this many tokens a CPU computes all distances faster than it finds out which ones matter.
_SMALL = 768


def top_k(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores of each row.

    Args:
        scores: [..., N] any dtype, compared in float32. Infinities are allowed.
        count: how many to take, clamped to [1, N]. A caller that wants none does not ask.

    Returns:
        [..., count] int64, ascending and unique. Among equal scores the lowest index wins.

    Raises:
        VLMCompressError: there are no scores, or one of them is NaN.
    """
    if scores.shape[-1] == 0:
        raise VLMCompressError("top_k needs at least one score, got none")
    scores = scores.detach().float()
    # torch.topk leaves the order of ties open; a stable sort does not.
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    found = order[..., : _clamp(count, scores.shape[-1])].sort(dim=-1).values
    # NaN sorts before everything. Asked last: a device has all its work by then.
    expect(
        ~ordered[..., 0].isnan().any(),
        lambda: VLMCompressError(
            f"top_k cannot rank NaN: {int(scores.isnan().sum())} of {scores.numel()} scores are NaN"
        ),
    )
    return found


def farthest_point(
    features: Tensor,
    count: int,
    *,
    order: Literal["picked", "raster"] = "raster",
    max_bytes: int = MATRIX_BYTES,
) -> Tensor:
    """Greedy max-min diversity: each pick is the row farthest from all rows picked before.

    Distance is 1 - cosine. The first pick is the row whose nearest neighbour is farthest away.
    Picked rows are masked, so an index never returns twice. A row whose float32 norm is 0 has no
    direction: it is nobody's neighbour and is picked after all other rows, lowest index first.
    Every image of a batch gives exactly the picks that it gives alone.

    All distances are computed once where N x N float32 fits `max_bytes`, on a CPU only for few
    rows; else only those that can decide a pick, in blocks. The two round differently: picks may
    differ where distances tie within 1e-7.

    Args:
        features: [..., N, D] any dtype, compared in float32 (also under autocast).
        count: how many to pick, clamped to [1, N].
        order: "picked", or "raster" for ascending indices.
        max_bytes: memory for distances.

    Returns:
        [..., count] int64.

    Raises:
        VLMCompressError: there are no rows, or a row is NaN, infinite or too large for float32.

    Source: DivPrune, arXiv 2503.02175, Algorithm 1 and section 3.3.
    """
    *batch, tokens, width = features.shape
    if tokens == 0:
        raise VLMCompressError("farthest_point needs at least one row, got none")
    count = _clamp(count, tokens)
    images = features.detach().reshape(math.prod(batch), tokens, width)
    # The size of one image decides, not of the batch: a batch must equal its members.
    together = max_bytes // (4 * tokens * tokens)
    with torch.autocast(features.device.type, enabled=False):
        if len(images) == 0:
            found = torch.empty(0, count, dtype=torch.long, device=features.device)
        elif together and use_triton(
            "farthest_point", images, B=min(together, len(images)), N=tokens, D=width, K=count
        ):
            from vlmcompress.ops._triton.select import farthest_point as kernel

            found = torch.cat([kernel(some, count) for some in torch.split(images, together)])
        elif together and (tokens <= _SMALL or not images.is_cpu):
            found = torch.cat([_dense(some, count) for some in torch.split(images, together)])
        else:
            found = torch.stack([_sparse(image, count) for image in images])
    found = found.reshape(*batch, count)
    return found.sort(dim=-1).values if order == "raster" else found


def spread_out(features: Tensor, threshold: float) -> Tensor:
    """The picks of `farthest_point` until every row is within `threshold` of one of them.

    A row of zeros has no direction and is at distance 1 from all others. Distances within 1e-6 of
    the threshold, which is what rounding leaves between equal rows, count as within.

    Args:
        features: [N, D] any dtype, compared in float32 (also under autocast).
        threshold: distance, 1 - cosine.

    Returns:
        [N] bool: which rows are picked; the first pick always is.

    Raises:
        VLMCompressError: as `farthest_point`.
    """
    order = farthest_point(features, len(features), order="picked")
    unit = directions(features)[0][order]
    rows, near = max(1, MATRIX_BYTES // (8 * len(unit))), []
    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, len(unit), rows):
            block = unit[start : start + rows] @ unit.T
            later = torch.ones_like(block, dtype=torch.bool).triu(start)
            near.append(block.masked_fill_(later, -torch.inf).amax(-1))
    fresh = 1 - torch.cat(near) > threshold + ROUNDING
    return torch.empty_like(fresh).scatter_(0, order, fresh)


def max_sum(
    features: Tensor,
    count: int,
    pivot: int | Tensor,
    *,
    order: Literal["picked", "raster"] = "raster",
    max_bytes: int = MATRIX_BYTES,
) -> Tensor:
    """Greedy max-sum diversity: each pick is the row with the largest summed distance to the picks.

    Distance is 1 - cosine, so this is the row of the smallest summed similarity. Picked rows are
    masked. A row whose float32 norm is 0 has no direction: unless it is the pivot it is picked
    after all other rows, lowest index first.

    Args:
        features: [N, D] any dtype, compared in float32 (also under autocast).
        count: how many to pick, clamped to [1, N].
        pivot: the first pick, in 0..N-1; a tensor [] is not looked at.
        order: "picked", or "raster" for ascending indices.
        max_bytes: memory for distances: all are computed once where they fit and that is faster.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no rows, the pivot is none of them, or a row is NaN, infinite or
            too large for float32.

    Source: ToDRE, arXiv 2505.18757, Algorithm 1.
    """
    tokens = len(features)
    if not tokens or (isinstance(pivot, int) and not 0 <= pivot < tokens):
        raise VLMCompressError(f"max_sum needs a pivot among its {tokens} rows, got {pivot}")
    count = _clamp(count, tokens)
    with torch.autocast(features.device.type, enabled=False):
        sizes = {"N": tokens, "D": features.shape[1], "K": count}
        if 4 * tokens**2 <= max_bytes and use_triton("max_sum", features, **sizes):
            from vlmcompress.ops._triton.select import max_sum as kernel

            found = kernel(features.detach(), count, int(pivot))
        else:
            found = _least_sum(features, count, pivot, max_bytes)
    return found.sort().values if order == "raster" else found


def _least_sum(features: Tensor, count: int, pivot: int | Tensor, max_bytes: int) -> Tensor:
    unit, norms = directions(features)
    cosines = Cosines(unit, count, max_bytes)
    # No sum of cosines moves it, and it stays below the inf of picked rows.
    total = torch.where(norms[:, 0] == 0, 1e30, 0.0)
    pick = torch.as_tensor(pivot, device=features.device).reshape(1)
    picks = []
    for _ in range(count):
        picks.append(pick)
        total += cosines.to(pick)
        total.index_fill_(0, pick, torch.inf)
        pick = total.argmin(-1, keepdim=True)
    check_norms(norms)
    return torch.cat(picks)


def _dense(images: Tensor, count: int) -> Tensor:
    """[B, count] picks of [B, N, D], from all distances; waits for the device once, at the end."""
    batch, tokens, _ = images.shape
    cosines = images.new_empty(batch, tokens, tokens, dtype=torch.float32)
    own = torch.eye(tokens, dtype=torch.bool, device=images.device)
    norms, firsts = [], []
    # Image by image: batched norms and products may round differently, and a CPU has each at hand.
    for rows, made in zip(images, cosines, strict=True):
        unit, norm = directions(rows)
        lost = norm[:, 0] == 0
        alike = self_cosines(unit, made).masked_fill(own | lost, -torch.inf).amax(-1)
        firsts.append(alike.masked_fill_(lost, _LAST).argmin(-1))
        norms.append(norm)
    norm, pick = torch.stack(norms), torch.stack(firsts)
    near = torch.where(norm[..., 0] == 0, _LAST, -torch.inf)
    image, picks = torch.arange(len(images), device=images.device), []
    for _ in range(count):
        picks.append(pick)
        near = torch.maximum(near, cosines[image, pick])
        near.scatter_(-1, pick[:, None], torch.inf)
        pick = near.argmin(-1)
    check_norms(norm)
    return torch.stack(picks, dim=-1)


def _sparse(image: Tensor, count: int) -> Tensor:
    """[count] picks of [N, D] without all distances."""
    unit = unit_rows(image)
    found = unit.any(dim=-1)
    if bool(found.all()):
        return farthest(unit, count)
    some, rest = found.nonzero()[:, 0], (~found).nonzero()[:, 0]
    if len(some):
        some = some[farthest(unit[some], min(count, len(some)))]
    return torch.cat([some, rest])[:count]


def _clamp(count: int, tokens: int) -> int:
    return max(1, min(count, tokens))
