"""Checks of what a method returned, put off where they would wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.deferred_checks import Checks


def indices(
    name: str,
    found: object,
    total: int,
    count: int,
    checks: Checks,
    *,
    may_keep_fewer: bool = False,
    method_order: bool = False,
) -> Tensor:
    """The indices that a method returned, checked; all 0 where `checks` will raise later.

    Args:
        name: of the method.
        found: what it returned: [K] int64 token indices.
        total: tokens that it chose from.
        count: how many it was asked for.
        checks: takes the checks that need values from the device.
        may_keep_fewer: whether fewer indices than `count` are allowed.
        method_order: whether the indices may be in any order; all tokens always ascend.

    Raises:
        VLMCompressError: it returned another kind of object, or another number of indices.
    """
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.dim() != 1:
        raise wrong(name, "no 1-D tensor of int64")
    check_count(name, len(found), count, may_keep_fewer)
    ordered = found.sort().values if method_order else found
    good = (ordered[0] >= 0) & (ordered[-1] < total) & (ordered.diff() > 0).all()
    order = "" if method_order else "ascending, "
    error = wrong(name, f"indices that are not {order}unique and from 0 to {total - 1}")
    checks.expect(good, lambda: error)
    return (ordered if len(found) == total else found).where(good, 0)


def rows_of_indices(
    name: str, found: object, shape: tuple[int, int], total: int, checks: Checks
) -> Tensor:
    """The same of several pictures at once: [B, K] as `shape` says.

    Raises:
        VLMCompressError: it returned another kind of object, or another shape.
    """
    if not isinstance(found, Tensor) or found.shape != shape:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise wrong(name, f"{given} where indices of shape {shape} were due")
    return torch.stack([indices(name, row, total, shape[1], checks) for row in found])


def check_count(name: str, found: int, count: int, may_keep_fewer: bool) -> None:
    """Raise unless a method gave as many tokens as it was asked for."""
    if not (0 < found <= count if may_keep_fewer else found == count):
        due = f"at most {count}" if may_keep_fewer else f"{count}"
        raise wrong(name, f"{found} tokens where {due} were due")


def wrong(name: str, what: str) -> VLMCompressError:
    """The error that method `name` gave `what`."""
    return VLMCompressError(f"{name} gave {what}")
