"""Matching tokens for merging: which token joins which. See `ops.groups` for what groups become.

Batches of B tiles with n tokens each. A matching is a `leader` [B, n] int64: for each token a
member of its group, the same for all members and its own leader. All is float32 inside; sorts are
stable and ties go to the lowest index.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import elu_

from vlmcompress.ops.backend import use_triton
from vlmcompress.ops.gather import take
from vlmcompress.ops.groups import alone
from vlmcompress.ops.similarity import MATRIX_BYTES, ROUNDING, unit_rows


def bipartite(metric: Tensor, remove: int, protected: int = 0) -> Tensor:
    """Even positions are sources, odd ones destinations; the most similar sources join them.

    Each source picks the destination of the highest cosine, several may pick the same. The
    `remove` sources whose cosine is highest are merged.

    Args:
        metric: [B, n, d] any floating dtype.
        remove: how many tokens to save, at most half of those that are not protected.
        protected: how many tokens at the beginning stay alone. They count for even and odd.

    Returns:
        [B, n] int64 leaders.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.

    Source: ToMe, arXiv 2210.09461, section 3; AIM, arXiv 2412.03248.
    """
    return ranked_bipartite(metric, remove, protected)[0]


def close_pairs(metric: Tensor, threshold: float) -> Tensor:
    """How many sources of `bipartite` are within a distance, 1 - cosine, of a destination.

    Args:
        metric: [1, n, d] any floating dtype.
        threshold: the distance; what rounding leaves between equal rows does not count.

    Returns:
        [] int64, at most n // 2.
    """
    unit, tokens = unit_rows(metric), metric.shape[1]
    if tokens < 2:
        return torch.zeros((), dtype=torch.long, device=metric.device)
    similarity, _ = best_match(unit[:, ::2], unit[:, 1::2])
    return (similarity >= 1 - threshold - ROUNDING).sum().clamp_max(tokens // 2)


def ranked_bipartite(metric: Tensor, remove: int, protected: int = 0) -> tuple[Tensor, Tensor]:
    """`bipartite` with the order in which AIM leaves the tokens.

    Returns:
        [B, n] leaders, and [B, n - remove] leaders in the order: protected tokens, sources that
        stay by falling similarity, destinations by position.
    """
    unit, leader = unit_rows(metric), alone(metric)
    remove = _possible(remove, metric.shape[1] - protected)
    if not remove:
        return leader, leader
    even, odd = _sides(protected)
    similarity, found = best_match(unit[:, even::2], unit[:, odd::2])
    rank = even + 2 * similarity.sort(dim=-1, descending=True, stable=True).indices
    # In the order of `rank`, the destination of each source.
    found = odd + 2 * found.gather(1, (rank - even) // 2)
    places = leader
    leader = leader.scatter(1, rank[:, :remove], found[:, :remove])
    return leader, torch.cat([places[:, :protected], rank[:, remove:], places[:, odd::2]], dim=1)


def energy(metric: Tensor, margin: float) -> Tensor:
    """[B, n] float32: how many similar tokens each token has, as PiToMe counts them.

    The mean over all tokens, itself among them, of f(cosine) with f(c) = c - margin from the
    margin on and exp(c - margin) - 1 below. (The paper writes c for the upper branch.)

    Args:
        metric: [B, n, d] any floating dtype.
        margin: cosine from which on tokens attract each other.

    Source: PiToMe, arXiv 2405.16148, equation 4; official code.
    """
    with torch.autocast(metric.device.type, enabled=False):
        unit = unit_rows(metric)
        size = _rows(unit.shape[1])
        blocks = [
            elu_((unit[:, start : start + size] @ unit.transpose(1, 2)).sub_(margin)).mean(-1)
            for start in range(0, unit.shape[1], size)
        ]
    return torch.cat(blocks, dim=1)


def energy_matching(metric: Tensor, remove: int, margin: float, protected: int = 0) -> Tensor:
    """The 2 * remove tokens of the highest energy merge in pairs of one side with the other.

    Sorted by falling energy they are source and destination in turn; each source joins the
    destination of the highest cosine. All other tokens stay alone.

    Args:
        metric, remove, protected: as for `bipartite`; protected tokens do not count for energies.
        margin: see `energy`.

    Returns:
        [B, n] int64 leaders.

    Source: PiToMe, arXiv 2405.16148, algorithm 1.
    """
    unit, leader = unit_rows(metric), alone(metric)
    remove = _possible(remove, metric.shape[1] - protected)
    if not remove:
        return leader
    order = energy(unit[:, protected:], margin).sort(dim=-1, descending=True, stable=True).indices
    sources, destinations = (order[:, side : 2 * remove : 2] + protected for side in (0, 1))
    _, found = best_match(take(unit, sources), take(unit, destinations))
    return leader.scatter(1, sources, destinations.gather(1, found))


def three_factor(
    metric: Tensor,
    attention: Tensor,
    sizes: Tensor,
    remove: int,
    protected: int = 0,
    *,
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0),
    both_ways: bool = True,
) -> Tensor:
    """Pairs that are similar, little attended to and small merge, in both directions.

    The weight of a pair is ((cos + 1) / 2)^(1/s) * (a_i a_j)^(1/i) * (z_i z_j)^(1/z), where a is
    the reciprocal of attention and z of size. Half of the merges (rounded down) send even positions
    to their best odd one, as in `bipartite`; the others send odd ones, with what they hold, to
    their best even one that is left.

    Args:
        metric, remove, protected: as for `bipartite`.
        attention: [B, n] attention that each token receives, on any scale.
        sizes: [B, n] positive: what each token stands for.
        temperatures: (s, i, z).
        both_ways: False sends even positions only.

    Returns:
        [B, n] int64 leaders.

    Source: MCTF, arXiv 2403.10030, section 3; official code.
    """
    unit, leader = unit_rows(metric), alone(metric)
    remove = _possible(remove, metric.shape[1] - protected)
    if not remove:
        return leader
    similar, informative, large = (1 / t for t in temperatures)
    # Both are powers of reciprocals of at most 1; a common factor would change no order.
    if informative + large < _HIGHEST:
        strength = positive(attention) ** -informative * positive(sizes) ** -large
        strength = strength / strength.amax(1, keepdim=True)
    else:
        logs = -informative * positive(attention).log() - large * positive(sizes).log()
        strength = (logs - logs.amax(1, keepdim=True)).exp()
    even, odd = _sides(protected)
    sides = unit[:, even::2], unit[:, odd::2]
    strengths = strength[:, even::2], strength[:, odd::2]
    gone = torch.zeros_like(strengths[0], dtype=torch.bool)
    first = remove // 2 if both_ways else remove
    if first:
        weight, found = best_match(*sides, strengths, similar)
        merged = weight.sort(dim=-1, descending=True, stable=True).indices[:, :first]
        leader = leader.scatter(1, even + 2 * merged, odd + 2 * found.gather(1, merged))
        gone = gone.scatter(1, merged, True)
    if remove > first:
        weight, found = best_match(*sides[::-1], strengths[::-1], similar, closed=gone)
        merged = weight.sort(dim=-1, descending=True, stable=True).indices[:, : remove - first]
        leader = leader.scatter(1, odd + 2 * merged, even + 2 * found.gather(1, merged))
    return leader.gather(1, leader)


_HIGHEST = 3.0
"""Powers of 1e12 that float32 can hold."""


def positive(values: Tensor) -> Tensor:
    """[B, n] float32 in (0, 1]: values of 0 or more, scaled so that the largest of a tile is 1.

    Values of 0 become 1e-12, so that they have reciprocals.
    """
    values = values.float()
    top = values.amax(1, keepdim=True)
    return torch.where(top > 0, values / top, 1.0).clamp_min(1e-12)


def best_match(
    rows: Tensor,
    columns: Tensor,
    strengths: tuple[Tensor, Tensor] | None = None,
    power: float = 1.0,
    closed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The heaviest column of each row, without a matrix of all weights where that is large.

    Args:
        rows: [B, R, d] float32, at length 1.
        columns: [B, C, d] likewise.
        strengths: [B, R] and [B, C] float32; the weight of a pair is then ((cos + 1) / 2)^power
            times both, else the cosine.
        power: see `strengths`.
        closed: [B, C] bool: columns that no row may have.

    Returns:
        [B, R] float32 weights and [B, R] int64 columns; ties go to the lowest.
    """
    (batch, count, width), others = rows.shape, columns.shape[1]
    sizes = {"B": batch, "R": count, "C": others, "D": width}
    sizes |= {"weighted": strengths is not None, "closed": closed is not None}
    if use_triton("best_match", rows, columns, **sizes):
        from vlmcompress.ops._triton.merge import best_match as kernel

        return kernel(rows, columns, strengths, power, closed)
    weights, found = [], []
    size = _rows(columns.shape[1])
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, rows.shape[1], size):
            block = rows[:, start : start + size] @ columns.transpose(1, 2)
            if strengths is not None:
                block.add_(1).div_(2).clamp_min_(0)
                if power != 1:  # the default, for which a power is most of the work
                    block.pow_(power)
                block.mul_(strengths[0][:, start : start + size, None])
                block.mul_(strengths[1][:, None])
            if closed is not None:
                block.masked_fill_(closed[:, None], -torch.inf)
            best = block.max(dim=-1)
            weights.append(best.values)
            found.append(best.indices)
    return torch.cat(weights, dim=1), torch.cat(found, dim=1)


def _rows(columns: int) -> int:
    """Rows of a matrix of cosines that are computed together."""
    return max(1, MATRIX_BYTES // (4 * columns))


def _possible(remove: int, tokens: int) -> int:
    return max(0, min(remove, tokens // 2))


def _sides(protected: int) -> tuple[int, int]:
    """The first even and the first odd position that is not protected."""
    return protected + protected % 2, protected + 1 - protected % 2
