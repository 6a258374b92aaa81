"""Greedy subsets that stand for a whole: float32 inside, ties to the lowest index, no repeats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.similarity import unit_rows

_BYTES = 64 * 2**20
"""Working memory of `facility_location` beside its similarities."""

# A squared sine: what is closer than this to the span of the picks adds nothing. Rounding to
# bfloat16 alone moves a row by about as much.
_NOTHING = 1e-5


def dpp_map(
    features: Tensor,
    count: int,
    quality: Tensor | None = None,
    *,
    order: Literal["picked", "raster"] = "raster",
) -> Tensor:
    """Greedy maximum a posteriori subset of a determinantal point process.

    The kernel is q_i cos(x_i, x_j) q_j. Each pick raises the determinant of the kernel on the picks
    the most. That is q_i^2 times the squared sine between x_i and the span of the picks, kept up to
    date by one Cholesky row a pick: O(N m (D + m)) time and O(N m) memory for m picks, no N x N
    kernel. Sines that are numerically 0 (squared below 1e-5) count as 0; where every gain is 0 the
    lowest indices fill up.

    Args:
        features: [N, D] any dtype, compared in float32 (also under autocast).
        count: how many to pick, clamped to [1, N].
        quality: [N] q, finite; only its size matters. None is 1 for all.
        order: "picked", or "raster" for ascending indices.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no rows, a row is NaN, infinite or too large for float32, or
            the quality is not one finite number per row.

    Source: Chen, Zhang and Zhou, Fast greedy MAP inference for DPP, arXiv 1709.05135, Algorithm 1.
    """
    tokens = len(features)
    count = _some(count, tokens, "dpp_map")
    with torch.autocast(features.device.type, enabled=False):
        unit = unit_rows(features)
        worth = _per_row("quality", quality, unit).abs()
        # Cholesky rows of the cosines alone: quality scales a gain and changes no direction.
        left = unit.any(dim=-1).float()
        factor = unit.new_zeros(count, tokens)
        taken = torch.zeros_like(left, dtype=torch.bool)
        picks = []
        for step in range(count):
            # The root, as small qualities squared would vanish.
            pick = (worth * left.sqrt()).masked_fill_(taken, -1).argmax(dim=-1, keepdim=True)
            picks.append(pick)
            taken[pick] = True
            own = left.index_select(0, pick)
            before = factor[:step]
            row = unit @ unit.index_select(0, pick)[0] - before.index_select(1, pick)[:, 0] @ before
            factor[step] = torch.where(own > 0, row * own.clamp(min=_NOTHING).rsqrt(), 0.0)
            left = left - factor[step].square()
            left = torch.where(left > _NOTHING, left, 0.0)
    found = torch.cat(picks)
    return found.sort().values if order == "raster" else found


def facility_location(
    similarity: Tensor,
    count: int,
    weights: Tensor | None = None,
    *,
    order: Literal["picked", "raster"] = "raster",
    max_bytes: int = _BYTES,
) -> Tensor:
    """Greedy facility location: columns that cover the rows best.

    A row is covered by the picks as far as the most similar of them, at least 0. Each pick has the
    largest weights[n] * (rise of the coverage, summed over the rows). Where nothing rises the
    lowest indices fill up. To weigh rows, scale them.

    Args:
        similarity: [R, N] of any dtype, compared in float32; what is below 0 covers nothing.
        count: how many columns to pick, clamped to [1, N].
        weights: [N] finite, not negative, factor on the gain of each column. None is 1 for all.
        order: "picked", or "raster" for ascending indices.
        max_bytes: working memory beside `similarity`.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no columns, a similarity is NaN or infinite, or the weights are
            not one finite number of at least 0 per column.
    """
    rows, tokens = similarity.shape
    count = _some(count, tokens, "facility_location")
    similarity = similarity.detach().float()
    bad = int((~similarity.isfinite()).sum())
    if bad:
        raise VLMCompressError(
            f"similarities must be finite: {bad} of {similarity.numel()} are not"
        )
    factors = _per_row("weights", weights, similarity.T)
    if bool((factors < 0).any()):
        raise VLMCompressError(f"weights must be 0 or more, got {float(factors.min()):g}")
    covered = similarity.new_zeros(rows, 1)
    taken = torch.zeros(tokens, dtype=torch.bool, device=similarity.device)
    block = max(1, max_bytes // (4 * tokens))
    picks = []
    for _ in range(count):
        gain = similarity.new_zeros(tokens)
        for start in range(0, rows, block):
            part = slice(start, start + block)
            gain += (similarity[part] - covered[part]).clamp_(min=0).sum(dim=0)
        pick = (gain * factors).masked_fill_(taken, -1).argmax(dim=-1, keepdim=True)
        picks.append(pick)
        taken[pick] = True
        covered = torch.maximum(covered, similarity.index_select(1, pick))
    found = torch.cat(picks)
    return found.sort().values if order == "raster" else found


def _some(count: int, tokens: int, op: str) -> int:
    if tokens == 0:
        raise VLMCompressError(f"{op} needs at least one token, got none")
    return max(1, min(count, tokens))


def _per_row(name: str, values: Tensor | None, rows: Tensor) -> Tensor:
    if values is None:
        return rows.new_ones(len(rows))
    values = values.detach().to(rows.device, torch.float32)
    if values.shape != rows.shape[:1] or not bool(values.isfinite().all()):
        raise VLMCompressError(
            f"{name} must be one finite number for each of {len(rows)} tokens, "
            f"got shape {tuple(values.shape)} with {int((~values.isfinite()).sum())} not finite"
        )
    return values
