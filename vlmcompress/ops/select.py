"""Choosing tokens: float32 inside, ties to the lowest index, the count clamped to [1, N]."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.similarity import unit_rows

MATRIX_BYTES = 256 * 2**20
"""Working memory of `farthest_point` and `max_sum`: a distance matrix of up to 8192 tokens."""

_ROWS = 1024
# Below every cosine distance, above -inf: rows without a direction wait until all others are taken.
_LAST = -3.0


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
    if bool(scores.isnan().any()):
        raise VLMCompressError(
            f"top_k cannot rank NaN: {int(scores.isnan().sum())} of {scores.numel()} scores are NaN"
        )
    # torch.topk leaves the order of ties open; a stable sort does not.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., : _clamp(count, scores.shape[-1])].sort(dim=-1).values


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

    Where N x N float32 fits `max_bytes` the distances are computed once; beyond it row by row, in
    O(N) memory. The two round differently: picks may differ where distances tie within 1e-7.

    Args:
        features: [..., N, D] any dtype, compared in float32 (also under autocast).
        count: how many to pick, clamped to [1, N].
        order: "picked", or "raster" for ascending indices.
        max_bytes: working memory for distances.

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
    rows = max(1, min(_ROWS, max_bytes // (4 * tokens)))
    # The size of one image decides, not of the batch: a batch must equal its members.
    together = max_bytes // (4 * tokens * tokens)
    distances: type[_Matrix] | type[_Rows] = _Matrix if together else _Rows
    step = together or 1
    picks = [torch.empty(0, count, dtype=torch.long, device=features.device)]
    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, len(images), step):
            # Image by image: batched norms and products may round differently.
            unit = [unit_rows(image) for image in images[start : start + step]]
            picks.append(_greedy(distances(unit), unit, count, rows))
    found = torch.cat(picks).reshape(*batch, count)
    return found.sort(dim=-1).values if order == "raster" else found


def max_sum(
    features: Tensor,
    count: int,
    pivot: int,
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
        pivot: the first pick, in 0..N-1.
        order: "picked", or "raster" for ascending indices.
        max_bytes: working memory for distances, as for `farthest_point`.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no rows, the pivot is none of them, or a row is NaN, infinite or
            too large for float32.

    Source: ToDRE, arXiv 2505.18757, Algorithm 1.
    """
    tokens = len(features)
    if not 0 <= pivot < tokens:
        raise VLMCompressError(f"max_sum needs a pivot among its {tokens} rows, got {pivot}")
    distances: type[_Matrix] | type[_Rows] = _Matrix if 4 * tokens**2 <= max_bytes else _Rows
    with torch.autocast(features.device.type, enabled=False):
        unit = [unit_rows(features)]
        source = distances(unit)
        # No sum of distances moves it, and it stays above the -inf of picked rows.
        total = torch.where(unit[0].any(dim=-1), 0.0, -1e30)
        pick, picks = torch.tensor([pivot], device=features.device), []
        for _ in range(_clamp(count, tokens)):
            picks.append(pick)
            total = total + source.to(pick)[0]
            total[pick] = -torch.inf
            pick = total.argmax(-1, keepdim=True)
    found = torch.cat(picks)
    return found.sort().values if order == "raster" else found


class _Distances(Protocol):
    def block(self, image: int, start: int, stop: int) -> Tensor:
        """Distances of rows start..stop to rows start..N."""

    def to(self, pick: Tensor) -> Tensor:
        """[B, N] distances of all rows to row `pick` [B] of their image."""


class _Matrix:
    """All distances, computed once."""

    def __init__(self, unit: list[Tensor]) -> None:
        tokens = len(unit[0])
        self._distances = unit[0].new_empty(len(unit), tokens, tokens)
        for rows, distances in zip(unit, self._distances, strict=True):
            torch.mm(rows, rows.T, out=distances)
        self._distances.neg_().add_(1)
        self._image = torch.arange(len(unit), device=unit[0].device)

    def block(self, image: int, start: int, stop: int) -> Tensor:
        return self._distances[image, start:stop, start:]

    def to(self, pick: Tensor) -> Tensor:
        return self._distances[self._image, pick]


class _Rows:
    """Distances computed when asked for."""

    def __init__(self, unit: list[Tensor]) -> None:
        self._unit = unit

    def block(self, image: int, start: int, stop: int) -> Tensor:
        x = self._unit[image]
        return 1 - x[start:stop] @ x[start:].T

    def to(self, pick: Tensor) -> Tensor:
        return torch.stack(
            [1 - x @ x.index_select(0, pick[i : i + 1])[0] for i, x in enumerate(self._unit)]
        )


def _greedy(source: _Distances, unit: list[Tensor], count: int, rows: int) -> Tensor:
    lost = torch.stack([~x.any(dim=-1) for x in unit])
    pick = torch.stack([_nearest(source, i, lost[i], rows) for i in range(len(unit))]).argmax(-1)
    distance = torch.full(lost.shape, torch.inf, device=lost.device).masked_fill_(lost, _LAST)
    picks = []
    for _ in range(count):
        picks.append(pick)
        distance = torch.minimum(distance, source.to(pick))
        distance.scatter_(-1, pick[:, None], -torch.inf)
        pick = distance.argmax(-1)
    return torch.stack(picks, dim=-1)


def _nearest(source: _Distances, image: int, lost: Tensor, rows: int) -> Tensor:
    """[N] distance of each row to its nearest neighbour.

    Each pair is read once, from above the diagonal: two rows that are nearest to each other tie
    exactly, although a matrix product need not be symmetric to the last bit.
    """
    tokens = len(lost)
    nearest = torch.full((tokens,), torch.inf, device=lost.device)
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        block = source.block(image, start, stop)
        hidden = torch.ones_like(block, dtype=torch.bool).tril() | lost[start:]
        hidden |= lost[start:stop, None]
        block = block.masked_fill(hidden, torch.inf)
        nearest[start:] = torch.minimum(nearest[start:], block.amin(0))
        nearest[start:stop] = torch.minimum(nearest[start:stop], block.amin(1))
    return nearest.masked_fill_(lost, _LAST)


def _clamp(count: int, tokens: int) -> int:
    return max(1, min(count, tokens))
