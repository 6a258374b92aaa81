"""Asking a projector-stage method for its choice, and not believing all that it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.base import ProjectorMethod, Reducer, Selector
from vlmcompress.methods.pipeline import ImagePlan
from vlmcompress.patches.signals import part_of
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Chosen:
    """What is left of the tokens that a method was shown."""

    kept: Tensor
    """[K] int64: which, or the smallest member of each group."""
    counts: tuple[int, ...]
    """Of each part of the plan."""
    merged: Reduction | None = None
    """New features, and what became of the tokens."""


def choose(
    method: ProjectorMethod,
    plan: ImagePlan,
    whole: VisualTokens,
    parts: tuple[Grid, ...],
    free: bool,
    picked: bool,
) -> Chosen:
    """Ask the method, part by part.

    Args:
        method: a selector or reducer.
        plan: of the image.
        whole: all its tokens.
        parts: the grids that they lie on, for methods that want them at once.
        free: whether the method may keep fewer than planned.
        picked: the order of the method rather than the raster's.

    Raises:
        VLMCompressError: the method gave something else than it was asked for.
    """
    starts = [0, *accumulate(len(grid) for grid, _ in plan.parts)][:-1]
    chosen, reductions = [], []
    for part, ((grid, count), start) in enumerate(zip(plan.parts, starts, strict=True)):
        tokens = part_of(whole, grid, start, part)
        if method.across_parts:
            tokens = replace(tokens, parts=parts if len(plan.parts) == 1 else (grid,))
        if isinstance(method, Reducer):
            reductions.append(_reduced(method, tokens, count, free))
        else:
            assert isinstance(method, Selector)
            chosen.append(_selected(method, tokens, count, free, picked) + start)
    if not reductions:
        return Chosen(torch.cat(chosen), tuple(map(len, chosen)))
    joined = Reduction.join(reductions, starts)
    return Chosen(joined.anchors, tuple(len(r.offsets) - 1 for r in reductions), joined)


def _selected(
    method: Selector, tokens: VisualTokens, count: int, free: bool, picked: bool
) -> Tensor:
    total = len(tokens.grid)
    if not _asks(count, total, free):
        return torch.arange(count, device=tokens.features.device)
    found = (method.pick if picked else method.select)(tokens, count)
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.dim() != 1:
        raise _wrong(method, "no 1-D tensor of int64")
    _check_count(method, len(found), count, free)
    ordered = found.sort().values if picked else found
    steps = ordered.diff()
    bad = (ordered[0] < 0) | (ordered[-1] >= total) | (steps < 1).any()
    if bool(bad):
        raise _wrong(
            method,
            f"indices that are not {'' if picked else 'ascending, '}unique and from 0 to "
            f"{total - 1}",
        )
    # All of them are no choice, in whatever order.
    return ordered if len(found) == total else found


def _reduced(method: Reducer, tokens: VisualTokens, count: int, free: bool) -> Reduction:
    total, features = len(tokens.grid), tokens.features
    if not _asks(count, total, free):
        return Reduction.identity(features[:count])
    found = method.reduce(tokens, count)
    if not isinstance(found, Reduction):
        raise _wrong(method, "no Reduction")
    members, offsets = found.members, found.offsets
    if members.dtype != torch.int64 or offsets.dtype != torch.int64:
        raise _wrong(method, "members or offsets that are not int64")
    _check_count(method, len(offsets) - 1, count, free)
    if found.features.shape != (len(offsets) - 1, features.shape[1]):
        raise _wrong(
            method,
            f"features of shape {tuple(found.features.shape)} for {len(offsets) - 1} groups of "
            f"tokens with {features.shape[1]} numbers",
        )
    if not bool(_grouped(members, offsets, total)):
        raise _wrong(
            method,
            f"groups that are not each non-empty, ascending, from 0 to {total - 1} and ordered by "
            "their smallest member",
        )
    return found


def _grouped(members: Tensor, offsets: Tensor, total: int) -> Tensor:
    """[] bool: whether groups are what `Reduction` says."""
    sizes = offsets.diff()
    fits = (offsets[0] == 0) & (offsets[-1] == len(members)) & (sizes > 0).all()
    if not bool(fits):
        return fits
    inside = torch.ones_like(members, dtype=torch.bool)
    inside[offsets[:-1]] = False
    ascending = (members.diff() > 0) | ~inside[1:]
    ordered = (members[offsets[:-1]].diff() > 0).all()
    return ordered & ascending.all() & (members >= 0).all() & (members < total).all()


def _asks(count: int, total: int, free: bool) -> bool:
    """Whether there is anything to choose."""
    return count > 0 and (count < total or free)


def _check_count(method: ProjectorMethod, found: int, count: int, free: bool) -> None:
    if not (0 < found <= count if free else found == count):
        raise _wrong(method, f"{found} tokens where {'at most ' if free else ''}{count} were due")


def _wrong(method: ProjectorMethod, what: str) -> VLMCompressError:
    return VLMCompressError(f"{method.name} gave {what}")
