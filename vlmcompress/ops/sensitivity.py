"""How strongly a function reacts to small changes of its input, and picks that weigh it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.projector import Body
from vlmcompress.ops.similarity import unit_rows

Probe = Literal["difference", "derivative", "expected"]

_NUMBERS = 2**24
"""Numbers in one block of outputs of the body: 64 MiB in float32."""


def sensitivity(
    body: Callable[[Tensor], Tensor],
    last: Tensor,
    inputs: Tensor,
    directions: Tensor,
    *,
    step: float,
    probe: Probe = "difference",
) -> Tensor:
    """Mean slope of x -> body(x) @ last.T along some directions.

    Args:
        body: [M, P, D] -> [M, K], computes in the dtype that it is given. A
            `vlmcompress.ops.projector.Body` is moved with one product of its first layer for all
            tokens and directions, any other is run for each.
        last: [C, K]; a constant that is added after it makes no difference.
        inputs: [M, P, D] any floating dtype.
        directions: [m, D] of length 1, moved along in all P patches at once.
        step: of the differences.
        probe: "difference": |f(x + step * u) - f(x - step * u)| / (2 * step); "derivative": |J u|,
            exact; "expected": the root of the mean of |J u|^2 over all directions that there are,
            in closed form, which looks at no direction and needs a `Body`.

    Returns:
        [M] float32, the mean over directions.

    Raises:
        VLMCompressError: a result is NaN or infinite, or "expected" is not to be had of the body.

    Source: ZOO-Prune, arXiv 2509.24837, section 3.2, for the differences.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        x, last = inputs.detach().float(), last.detach().float()
        if probe == "expected":
            if not isinstance(body, Body):
                raise VLMCompressError(
                    "probe='expected' needs a projector of two linear layers, this one is another"
                )
            slopes = body.spread(x, last)
        else:
            slopes = _mean_slopes(body, last, x, directions.to(x), step, probe)
    expect(
        slopes.isfinite().all(),
        lambda: VLMCompressError(
            "the projector must react with finite numbers: "
            f"{int((~slopes.isfinite()).sum())} of {len(slopes)} are not"
        ),
    )
    return slopes


def _mean_slopes(
    body: Callable[[Tensor], Tensor],
    last: Tensor,
    x: Tensor,
    directions: Tensor,
    step: float,
    probe: Probe,
) -> Tensor:
    """[M]: over the directions, a block of them at a time."""
    moves = body.moves(x, directions) if isinstance(body, Body) else None
    total = x.new_zeros(len(x))
    block = max(1, _NUMBERS // max(1, len(x) * last.shape[1]))
    for start in range(0, len(directions), block):
        some = slice(start, start + block)
        if probe == "derivative":
            slopes = _derivatives(body, x, directions[some])
        elif moves is not None:
            assert isinstance(body, Body)
            slopes = body.act(moves(some, step)).sub_(body.act(moves(some, -step)))
            slopes = slopes.div_(2 * step)
        else:
            slopes = _differences(body, x, directions[some], step)
        # The last layer is linear: it is applied once to the slope of the body.
        total += torch.linalg.vector_norm(slopes @ last.T, dim=-1).sum(0)
    return total / len(directions)


def weighted_farthest_point(
    features: Tensor,
    weights: Tensor,
    count: int,
    *,
    order: Literal["picked", "raster"] = "raster",
) -> Tensor:
    """Greedy picks of rows that weigh much and are far from all rows picked before.

    The first pick is the heaviest row; each other has the largest product of its weight and its
    distance (1 - cosine) to the nearest pick. Ties go to the lowest index, and picked rows are
    masked. A row of zeros has the distance 1 to all.

    Args:
        features: [N, D] any dtype, compared in float32 (also under autocast).
        weights: [N], 0 or more.
        count: how many to pick, clamped to [1, N].
        order: "picked", or "raster" for ascending indices.

    Returns:
        [count] int64.

    Raises:
        VLMCompressError: there are no rows, or a row is NaN, infinite or too large for float32.

    Source: ZOO-Prune, arXiv 2509.24837, section 3.3.
    """
    if len(features) == 0:
        raise VLMCompressError("weighted_farthest_point needs at least one row, got none")
    weights = weights.to(features.device, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        unit = unit_rows(features)
        distance = torch.full_like(weights, torch.inf)
        open_ = torch.zeros_like(weights)
        pick, picks = weights.argmax(dim=0, keepdim=True), []
        for _ in range(max(1, min(count, len(unit)))):
            picks.append(pick)
            open_.index_fill_(0, pick, -torch.inf)
            # Of equal rows 1 - cosine may come out just below 0.
            apart = (1 - unit @ unit.index_select(0, pick)[0]).clamp_min_(0)
            distance = torch.minimum(distance, apart)
            pick = (weights * distance + open_).argmax(dim=0, keepdim=True)
    found = torch.cat(picks)
    return found.sort().values if order == "raster" else found


def _differences(
    body: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, step: float
) -> Tensor:
    """[m, M, K] central differences of the body."""
    moves = step * directions[:, None, None]
    ahead, behind = (body((x + move).flatten(0, 1)) for move in (moves, -moves))
    slopes = (ahead - behind) / (2 * step)
    return slopes.view(len(directions), len(x), -1)


def _derivatives(body: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor) -> Tensor:
    """[m, M, K] directional derivatives of the body."""

    def along(direction: Tensor) -> Tensor:
        slope: Tensor = torch.func.jvp(body, (x,), (direction.expand_as(x),))[1]
        return slope

    found: Tensor = torch.func.vmap(along)(directions)
    return found
