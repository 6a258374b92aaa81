"""Greedy max-min diversity without an N x N product: only distances that can matter are computed.

A similarity to some rows is a lower bound of the largest similarity to all of them. A row whose
bound lies above the smallest true value is no pick and is left alone until it could be one: no
approximation, only work put off. Rows here have a direction, and smaller indices win ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows beside each other in raster order are often alike: a cheap bound for all rows at once.
_BAND = 32
_ROWS = 128
_COLUMNS = 512
# Up to date are the rows of the lowest bounds: for step t about N * _SHARE / t, at least _POOL.
_SHARE = 2
_POOL = 64


def farthest(unit: Tensor, count: int) -> Tensor:
    """Greedy max-min picks of one image on the host.

    Works on [128, 512] similarities and a copy of at most half of the rows.

    Args:
        unit: [N, D] float32, rows at length 1.
        count: how many to pick, in 1..N.

    Returns:
        [count] int64 in the order of picking.
    """
    picks = [_loneliest(unit)]
    chosen = unit.new_empty(count, unit.shape[1])
    pool = _Pool(unit)
    while True:
        done = len(picks)
        chosen[done - 1] = unit[picks[-1]]
        pool.take(picks[-1], chosen[done - 1])
        if done == count:
            return torch.tensor(picks, device=unit.device)
        picks.append(pool.lowest(chosen[:done]))


class _Pool:
    """Largest similarity of each row to the picks: true for the rows of the pool, else a bound."""

    def __init__(self, unit: Tensor) -> None:
        tokens = len(unit)
        self._unit = self._rows = unit
        self._pool = torch.arange(tokens, device=unit.device)
        self._near = unit.new_full((tokens,), -torch.inf)
        # Of the rows outside, and how many picks it has seen.
        self._bound = unit.new_full((tokens,), torch.inf)
        self._seen = torch.zeros_like(self._pool)

    def take(self, pick: int, row: Tensor) -> None:
        """Compares the pool with a pick, which is out of the race from now on."""
        self._near = torch.maximum(self._near, self._rows @ row)
        self._near[self._pool == pick] = torch.inf

    def lowest(self, chosen: Tensor) -> int:
        """The row least similar to the picks `chosen` [m, D]."""
        size = max(_POOL, _SHARE * len(self._unit) // len(chosen))
        while True:
            best, outside = int(self._near.argmin()), int(self._bound.argmin())
            row = int(self._pool[best])
            ahead = (float(self._near[best]), row) < (float(self._bound[outside]), outside)
            if ahead and len(self._pool) <= 2 * size:
                return row
            self._refill(chosen, size)

    def _refill(self, chosen: Tensor, size: int) -> None:
        """Brings the `size` rows of the lowest bounds up to date and lets the others go."""
        self._bound[self._pool] = self._near
        self._seen[self._pool] = len(chosen)
        pool = self._bound.topk(min(size, len(self._bound)), largest=False).indices
        # topk takes any of many equals. Ascending, the first of them is the lowest index.
        pool[-1] = self._bound.argmin()
        self._pool = pool.sort().values
        self._near = self._bound[self._pool]
        self._rows = self._unit[self._pool]
        new = chosen[int(self._seen[self._pool].min()) :]
        if len(new):
            self._near = torch.maximum(self._near, (self._rows @ new.T).amax(1))
        self._bound[self._pool] = torch.inf


def _loneliest(unit: Tensor) -> int:
    """The row whose most similar other row is the least similar."""
    tokens = len(unit)
    near = _banded(unit)
    open_ = torch.ones_like(near, dtype=torch.bool)
    while open_[lowest := int(near.argmin())]:
        rows = near.masked_fill(~open_, torch.inf).topk(min(_ROWS, tokens), largest=False).indices
        # Of many equal bounds it is the first that counts.
        rows[-1] = lowest
        limit = near.masked_fill(open_, torch.inf).amin()
        open_[_compare(unit, rows, near, limit)] = False
    return lowest


def _banded(unit: Tensor) -> Tensor:
    """[N] bounds, from the rows nearby."""
    bounds = []
    for some in torch.split(unit, _BAND):
        block = (some @ some.T).fill_diagonal_(-torch.inf)
        bounds.append(torch.maximum(block.amax(0), block.amax(1)))
    return torch.cat(bounds)


def _compare(unit: Tensor, rows: Tensor, near: Tensor, limit: Tensor) -> Tensor:
    """Raises `near` by what some rows have in common with all; gives the rows at most at `limit`.

    Each product counts for both of its rows: two that are nearest to each other tie exactly,
    although a matrix product need not be symmetric to the last bit.
    """
    some = unit[rows]
    for start in range(0, len(unit), _COLUMNS):
        stop = min(start + _COLUMNS, len(unit))
        block = some @ unit[start:stop].T
        itself = rows[:, None] == torch.arange(start, stop, device=rows.device)
        block.masked_fill_(itself, -torch.inf)
        near[start:stop] = torch.maximum(near[start:stop], block.amax(0))
        near[rows] = torch.maximum(near[rows], block.amax(1))
        hopeful = near[rows] <= limit
        if not bool(hopeful.all()):
            rows, some = rows[hopeful], some[hopeful]
            if len(rows) == 0:
                break
    return rows
