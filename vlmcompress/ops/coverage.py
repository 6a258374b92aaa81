"""Greedy subsets that stand for a whole: float32 inside, ties to the lowest index, no repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.backend import use_triton
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.similarity import MATRIX_BYTES, Cosines, check_norms, directions

_BYTES = 64 * 2**20
"""Working memory of `facility_location` beside its similarities."""

# Gains brought up to date at once.
_SOME = 64
# Up to so many similarities a CPU works out all gains faster than it finds out which ones matter.
_SMALL = 2**20

# A squared sine: what is closer than this to the span of the picks adds nothing. Rounding to
# bfloat16 alone moves a row by about as much.
_NOTHING = 1e-5


def dpp_map(
    features: Tensor,
    count: int,
    quality: Tensor | None = None,
    *,
    order: Literal["picked", "raster"] = "raster",
    max_bytes: int = MATRIX_BYTES,
) -> Tensor:
    """Greedy maximum a posteriori subset of a determinantal point process.

    The kernel is q_i cos(x_i, x_j) q_j. Each pick raises the determinant of the kernel on the picks
    the most. That is q_i^2 times the squared sine between x_i and the span of the picks, kept up to
    date by one Cholesky row a pick: O(N m (D + m)) time and O(N m) memory for m picks. Sines that
    are numerically 0 (squared below 1e-5) count as 0; where every gain is 0 the lowest indices
    fill up.

    Args:
        features: [N, D] any dtype, compared in float32 (also under autocast).
        count: how many to pick, clamped to [1, N].
        quality: [N] q, finite; only its size matters. None is 1 for all.
        order: "picked", or "raster" for ascending indices.
        max_bytes: memory for cosines: all are computed once where they fit and that is faster.

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
        worth = _per_row("quality", quality, features).abs()
        sizes = {"N": tokens, "D": features.shape[1], "K": count}
        if 4 * tokens**2 <= max_bytes and use_triton("dpp_map", features, **sizes):
            from vlmcompress.ops._triton.coverage import dpp_map as kernel

            found = kernel(features.detach(), count, worth, _NOTHING)
        else:
            found = _most_probable(features, count, worth, max_bytes)
    return found.sort().values if order == "raster" else found


def _most_probable(features: Tensor, count: int, worth: Tensor, max_bytes: int) -> Tensor:
    unit, norms = directions(features)
    cosines = Cosines(unit, count, max_bytes)
    # Cholesky rows of the cosines alone: quality scales a gain and changes no direction.
    left = (norms[:, 0] > 0).float()
    factor = unit.new_zeros(count, len(unit))
    taken = torch.zeros_like(left)
    picks = []
    for step in range(count):
        # The root, as small qualities squared would vanish.
        pick = (worth * left.sqrt() + taken).argmax(dim=-1, keepdim=True)
        picks.append(pick)
        taken.index_fill_(0, pick, -torch.inf)
        own = left.index_select(0, pick)
        before = factor[:step]
        row = cosines.to(pick) - before.index_select(1, pick)[:, 0] @ before
        factor[step] = torch.where(own > 0, row * own.clamp(min=_NOTHING).rsqrt(), 0.0)
        left = left - factor[step].square()
        left = torch.where(left > _NOTHING, left, 0.0)
    check_norms(norms)
    return torch.cat(picks)


def facility_location(
    similarity: Tensor,
    count: int,
    weights: Tensor | None = None,
    *,
    order: Literal["picked", "raster"] = "raster",
    symmetric: bool = False,
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
        symmetric: says that `similarity` equals its transpose, so that none is made.
        max_bytes: working memory beside `similarity`, and beside its transpose on a CPU.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no columns, a similarity is NaN or infinite, or the weights are
            not one finite number of at least 0 per column.
    """
    rows, tokens = similarity.shape
    count = _some(count, tokens, "facility_location")
    similarity = similarity.detach().float()
    factors = _factors(weights, similarity.T)
    if use_triton("facility_location", similarity, R=rows, N=tokens, K=count):
        from vlmcompress.ops._triton.coverage import facility_location as kernel

        found = kernel(similarity.T if symmetric else similarity, count, factors)
    elif similarity.is_cpu and similarity.numel() > _SMALL:
        across = similarity if symmetric else similarity.T.contiguous()
        found = _lazily(lambda index: across.index_select(0, index), count, factors, max_bytes)
    else:
        found = _step_by_step(similarity, count, factors, max_bytes)
    if rows:
        expect(
            torch.stack(similarity.aminmax()).isfinite().all(),
            lambda: VLMCompressError(
                f"similarities must be finite: {int((~similarity.isfinite()).sum())} of "
                f"{similarity.numel()} are not"
            ),
        )
    return found.sort().values if order == "raster" else found


def facility_location_of(
    columns: Callable[[Tensor], Tensor],
    tokens: int,
    count: int,
    weights: Tensor | None = None,
    *,
    device: torch.device | None = None,
    order: Literal["picked", "raster"] = "raster",
    max_bytes: int = _BYTES,
) -> Tensor:
    """`facility_location` of similarities that are made when they are asked for: no R x N matrix.

    Each column is asked for once, and again a few times for each pick as long as its last known
    gain is among the highest: a gain never rises.

    Args:
        columns: gives for indices [B] int64 their similarities [B, R] float32, finite and always
            the same.
        tokens: N, how many columns there are.
        count: how many columns to pick, clamped to [1, N].
        weights: [N] as for `facility_location`.
        device: of the indices; None is that of the weights, or the CPU.
        order: "picked", or "raster" for ascending indices.
        max_bytes: working memory, at least one column.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no columns, or the weights are not one finite number of at least
            0 per column.
    """
    count = _some(count, tokens, "facility_location")
    if device is None and weights is not None:
        device = weights.device
    found = _lazily(
        columns, count, _factors(weights, torch.empty(tokens, 0, device=device)), max_bytes
    )
    return found.sort().values if order == "raster" else found


def _lazily(
    columns: Callable[[Tensor], Tensor], count: int, factors: Tensor, max_bytes: int
) -> Tensor:
    """Works out the gains of the columns that were last the best, until the best is up to date."""
    everyone = torch.arange(len(factors), device=factors.device)
    covered = torch.zeros_like(columns(everyone[:1])[0])
    block = max(1, max_bytes // (4 * max(1, len(covered))))

    def gains(index: Tensor) -> Tensor:
        # The same sum however many there are: equal columns stay equal.
        rise = (columns(index) - covered).clamp_(min=0).sum(dim=-1)
        return rise * factors[index]

    gain = torch.cat([gains(index) for index in torch.split(everyone, block)])
    # For how many picks a gain holds.
    known = torch.zeros_like(everyone)
    some = min(_SOME, block, len(factors))
    picks = []
    for step in range(count):
        while known[best := int(gain.argmax())] < step:
            index = gain.masked_fill(known >= step, -torch.inf).topk(some).indices
            index[-1] = best
            # A rest of the topk may be picked already.
            gain[index] = torch.minimum(gain[index], gains(index))
            known[index] = known[index].clamp(min=step)
        picks.append(best)
        covered = torch.maximum(covered, columns(everyone[best : best + 1])[0])
        gain[best], known[best] = -torch.inf, count
    return torch.tensor(picks, device=factors.device)


def _step_by_step(similarity: Tensor, count: int, factors: Tensor, max_bytes: int) -> Tensor:
    """Works out all gains for each pick: nothing waits for the device."""
    rows, tokens = similarity.shape
    covered = similarity.new_zeros(rows, 1)
    block = max(1, max_bytes // (4 * tokens))
    taken = torch.zeros_like(factors)
    picks = []
    for _ in range(count):
        gain = similarity.new_zeros(tokens)
        parts = zip(torch.split(similarity, block), torch.split(covered, block), strict=True)
        for part, known in parts:
            gain += (part - known).clamp_(min=0).sum(dim=0)
        pick = (gain * factors + taken).argmax(dim=-1, keepdim=True)
        picks.append(pick)
        taken.index_fill_(0, pick, -torch.inf)
        covered = torch.maximum(covered, similarity.index_select(1, pick))
    return torch.cat(picks)


def _some(count: int, tokens: int, op: str) -> int:
    if tokens == 0:
        raise VLMCompressError(f"{op} needs at least one token, got none")
    return max(1, min(count, tokens))


def _factors(weights: Tensor | None, rows: Tensor) -> Tensor:
    factors = _per_row("weights", weights, rows)
    if weights is not None:
        expect(
            (factors >= 0).all(),
            lambda: VLMCompressError(f"weights must be 0 or more, got {float(factors.min()):g}"),
        )
    return factors


def _per_row(name: str, values: Tensor | None, rows: Tensor) -> Tensor:
    if values is None:
        return torch.ones(len(rows), device=rows.device)
    values = values.detach().to(rows.device, torch.float32)

    def error() -> VLMCompressError:
        return VLMCompressError(
            f"{name} must be one finite number for each of {len(rows)} tokens, "
            f"got shape {tuple(values.shape)} with {int((~values.isfinite()).sum())} not finite"
        )

    if values.shape != rows.shape[:1]:
        raise error()
    expect(values.isfinite().all(), error)
    return values
