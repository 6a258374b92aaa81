"""Directions of rows, for cosine similarity: float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.deferred_checks import expect

ROUNDING = 1e-6
"""What rounding leaves between the directions of equal rows, as 1 - cosine."""

MATRIX_BYTES = 2**30
"""Memory for the similarities of one selection: a matrix of up to 16384 tokens."""

# On a CPU a product with one row costs as much as this many rows of a product with all (D = 4096).
_ROW_COST = 16
_BLOCK = 768


def directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at length 1 and their norms, unchecked: nothing waits for the device.

    Args:
        rows: [..., D] any floating dtype.

    Returns:
        [..., D] float32; a row whose float32 norm is 0 becomes 0.
        [..., 1] float32 norms, for `check_norms`.
    """
    single = rows.detach().float()
    norm = torch.linalg.vector_norm(single, dim=-1, keepdim=True)
    divisor = norm.masked_fill(norm == 0, torch.inf)
    # What the cast made may be overwritten; fresh memory for a large input costs as much as a norm.
    return (single / divisor if rows.dtype == torch.float32 else single.div_(divisor)), norm


def check_norms(norms: Tensor, name: str = "features") -> None:
    """Refuses rows without a usable length; waits for the device once.

    Raises:
        VLMCompressError: a norm is not finite.
    """
    lost = ~norms.isfinite()
    expect(
        ~lost.any(),
        lambda: VLMCompressError(
            f"{name} must be finite: {int(lost.sum())} of {norms.numel()} rows are NaN, infinite "
            "or too large"
        ),
    )


def unit_rows(rows: Tensor, name: str = "features") -> Tensor:
    """Rows at length 1.

    Args:
        rows: [..., D] any floating dtype.
        name: what they are, for the message.

    Returns:
        [..., D] float32; a row whose float32 norm is 0 stays 0.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    unit, norms = directions(rows)
    check_norms(norms, name)
    return unit


def changes(rows: Tensor, step: int) -> Tensor:
    """How far each row is from the one `step` places before it, as 1 - cosine.

    Computed from the difference of their directions, so that equal rows are at exactly 0.

    Args:
        rows: [N, D] any floating dtype, compared in float32 (also under autocast).
        step: 1 to N.

    Returns:
        [N - step] float32. A row of zeros has no direction and is at distance 1.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    with torch.autocast(rows.device.type, enabled=False):
        unit = unit_rows(rows)
        before, after = unit[:-step], unit[step:]
        lengths = before.any(dim=-1).float() + after.any(dim=-1).float()
        return (after - before).square().sum(dim=-1) / 2 + 1 - lengths / 2


def within(rows: Tensor, threshold: float) -> Tensor:
    """Which rows are no farther than a distance, 1 - cosine, from which; symmetric.

    Args:
        rows: [N, D] any floating dtype, compared in float32 (also under autocast).
        threshold: the distance; what rounding leaves between equal rows does not count.

    Returns:
        [N, N] bool. A row of zeros has no direction and is at distance 1 from all.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return self_cosines(unit_rows(rows)) >= 1 - threshold - ROUNDING


def self_cosines(unit: Tensor, out: Tensor | None = None) -> Tensor:
    """Cosine of each row with each other row, symmetric to the last bit.

    Only the blocks from the diagonal on are multiplied, the others are mirrored.

    Args:
        unit: [N, D] float32, rows at length 1 or 0.
        out: [N, N] float32 to write to.

    Returns:
        [N, N] float32.
    """
    tokens = len(unit)
    made = unit.new_empty(tokens, tokens) if out is None else out
    for start in range(0, tokens, _BLOCK):
        stop = start + _BLOCK
        right = made[start:stop, start:]
        torch.mm(unit[start:stop], unit[start:].T, out=right)
        # Not even a product with itself need be symmetric.
        square = right[:, : len(right)]
        square.copy_(square.triu() + square.triu(1).T)
        made[stop:, start:stop] = right[:, len(right) :].T
    return made


def cosines_of(unit: Tensor, index: Tensor) -> Tensor:
    """[B, N] cosines of some rows, [B] int64, of `unit` [N, D] with all; also under autocast."""
    with torch.autocast(unit.device.type, enabled=False):
        return unit.index_select(0, index) @ unit.T


class Cosines:
    """Cosines of all rows with one of them: from a matrix where it fits and pays, else computed.

    Args:
        unit: [N, D] float32, rows at length 1 or 0.
        count: how many rows will be asked for.
        max_bytes: memory for a matrix.
    """

    def __init__(self, unit: Tensor, count: int, max_bytes: int) -> None:
        self._unit = unit
        pays = not unit.is_cpu or count * _ROW_COST > len(unit)
        self._matrix = self_cosines(unit) if pays and 4 * len(unit) ** 2 <= max_bytes else None

    def to(self, row: Tensor) -> Tensor:
        """[N] cosines with row `row` [1] int64."""
        if self._matrix is not None:
            return self._matrix.index_select(0, row)[0]
        return self._unit @ self._unit.index_select(0, row)[0]


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine of each row with each of `others`.

    Args:
        rows: [..., N, D] any floating dtype.
        others: [..., M, D].

    Returns:
        [..., N, M] float32, also under autocast; 0 where a row is 0.

    Raises:
        VLMCompressError: as for `unit_rows`.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return unit_rows(rows) @ unit_rows(others).transpose(-1, -2)
