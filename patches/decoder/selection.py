"""Asking a projector-stage method for its choice, and not believing all that it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.answers import check_count, indices, wrong
from vlmcompress.methods.contracts.asking import reducing, selecting
from vlmcompress.methods.contracts.method import ProjectorMethod, Reducer, Selector
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.questions import Asking, abreast
from vlmcompress.patches.signals.projector import used_by
from vlmcompress.patches.signals.tower_hooks import (
    AT_FEATURE,
    PER_LAYER,
)
from vlmcompress.tokens import Grid, Projection, Reduction, VisualTokens


@dataclass(frozen=True)
class Chosen:
    """What a method kept of the tokens that it was shown."""

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
    may_keep_fewer: bool,
    method_order: bool,
    checks: Checks,
) -> Asking[Chosen]:
    """Ask the method, part by part; it may have to ask the device.

    Args:
        method: a selector or reducer.
        plan: of the image.
        whole: all its tokens.
        parts: the grids that they lie on, for methods that want them at once.
        may_keep_fewer: whether the method may keep fewer than planned.
        method_order: the order of the method rather than the raster's.
        checks: what only the device knows is checked there; if it will raise, all indices are 0.

    Raises:
        VLMCompressError: the method gave another kind of thing than it was asked for.
    """
    starts = [0, *accumulate(len(grid) for grid, _ in plan.parts)][:-1]
    asking: list[Asking[Tensor | Reduction]] = []
    shown: list[Tensor] = []
    for part, ((grid, count), start) in enumerate(zip(plan.parts, starts, strict=True)):
        tokens = part_of(whole, grid, start, part)
        if method.across_parts:
            tokens = replace(tokens, parts=parts if len(plan.parts) == 1 else (grid,))
        shown.append(tokens.features)
        if isinstance(method, Reducer):
            asking.append(_reduced(method, tokens, count, may_keep_fewer, checks))
        else:
            assert isinstance(method, Selector)
            asking.append(_selected(method, tokens, count, may_keep_fewer, method_order, checks))
    found = yield from abreast(asking)
    chosen = [one for one in found if isinstance(one, Tensor)]
    if chosen:
        kept = [one + start for one, start in zip(chosen, starts, strict=True)]
        return Chosen(torch.cat(kept), tuple(map(len, kept)))
    reductions = [one for one in found if isinstance(one, Reduction)]
    if all(made.features is given for made, given in zip(reductions, shown, strict=True)):
        # Nothing repeated: as if there were no method.
        alive = torch.arange(len(whole.features), device=whole.features.device)
        return Chosen(alive, tuple(len(grid) for grid, _ in plan.parts))
    joined = Reduction.join(reductions, starts)
    return Chosen(joined.anchors, tuple(len(r.offsets) - 1 for r in reductions), joined)


def _selected(
    method: Selector,
    tokens: VisualTokens,
    count: int,
    may_keep_fewer: bool,
    method_order: bool,
    checks: Checks,
) -> Asking[Tensor]:
    total = len(tokens.grid)
    if not _asks(count, total, may_keep_fewer):
        return torch.arange(count, device=tokens.features.device)
    if method_order:
        found = method.pick(tokens, count)
    else:
        found = yield from selecting(method, tokens, count)
    return indices(
        method.name,
        found,
        total,
        count,
        checks,
        may_keep_fewer=may_keep_fewer,
        method_order=method_order,
    )


def _reduced(
    method: Reducer, tokens: VisualTokens, count: int, may_keep_fewer: bool, checks: Checks
) -> Asking[Reduction]:
    if not _asks(count, len(tokens.grid), may_keep_fewer):
        return Reduction.identity(tokens.features[:count])
    found = yield from reducing(method, tokens, count)
    return checked_reduction(method.name, found, tokens.features, count, checks, may_keep_fewer)


def checked_reduction(
    name: str,
    found: object,
    features: Tensor,
    count: int,
    checks: Checks,
    may_keep_fewer: bool = False,
) -> Reduction:
    """What a method made of tokens, checked; groups of token 0 where `checks` will raise later.

    Args:
        name: of the method.
        found: what it returned.
        features: [N, D] that it was given.
        count: how many it was asked for.
        checks: takes the checks that need values from the device.
        may_keep_fewer: whether it may make fewer.

    Raises:
        VLMCompressError: it returned another kind of object, or another number of tokens.
    """
    if not isinstance(found, Reduction):
        raise wrong(name, "no Reduction")
    members, offsets, total = found.members, found.offsets, len(features)
    if members.dtype != torch.int64 or offsets.dtype != torch.int64:
        raise wrong(name, "members or offsets that are not int64")
    if found.places is not None and (
        found.places.dtype != torch.int64 or found.places.shape != (len(offsets) - 1,)
    ):
        raise wrong(name, f"places that are not int64, one for each of {len(offsets) - 1}")
    check_count(name, len(offsets) - 1, count, may_keep_fewer)
    if found.features.shape != (len(offsets) - 1, features.shape[1]):
        raise wrong(
            name,
            f"features of shape {tuple(found.features.shape)} for {len(offsets) - 1} groups of "
            f"tokens with {features.shape[1]} numbers",
        )
    error = wrong(
        name,
        f"groups that are not each non-empty, ascending, from 0 to {total - 1} and ordered by "
        "their smallest member, or by the places given",
    )
    if not len(members):
        raise error
    good = _grouped(found, total)
    checks.expect(good, lambda: error)
    places = None if found.places is None else found.places.where(good, 0)
    members, offsets = members.where(good, 0), offsets.where(good, 0)
    return replace(found, members=members, offsets=offsets, places=places)


def _grouped(found: Reduction, total: int) -> Tensor:
    """[] bool: whether groups are what `Reduction` says; there is at least one member."""
    members, offsets = found.members, found.offsets
    fits = (offsets[0] == 0) & (offsets[-1] == len(members)) & (offsets.diff() > 0).all()
    starts = offsets[:-1].where(fits, 0)
    first = torch.zeros_like(members, dtype=torch.bool).index_fill(0, starts, True)
    ascending = ((members.diff() > 0) | first[1:]).all()
    places = members[starts] if found.places is None else found.places
    ordered = (places.diff() > 0).all() & (places[0] >= 0) & (places[-1] < total)
    return fits & ordered & ascending & ((members >= 0) & (members < total)).all()


def _asks(count: int, total: int, may_keep_fewer: bool) -> bool:
    """Whether there is anything to choose."""
    return count > 0 and (count < total or may_keep_fewer)


_PER_TOKEN = (
    "features",
    "relevance",
    "question_logits",
    "projection",
    "sizes",
    *AT_FEATURE,
    *PER_LAYER,
)
"""Fields of `VisualTokens` that have a value for each token."""


def part_of(tokens: VisualTokens, grid: Grid, start: int, part: int) -> VisualTokens:
    """The tokens of one of several grids of an image, which begins with token `start`."""
    tokens = replace(tokens, grid=grid, part=part)
    if len(grid) == len(tokens.features):
        return tokens
    return some_of(tokens, slice(start, start + len(grid)))


def some_of(tokens: VisualTokens, own: Tensor | slice) -> VisualTokens:
    """Features and signals of some tokens: indices or a slice. The grid stays as it is."""
    return replace(tokens, **{name: _cut(getattr(tokens, name), own) for name in _PER_TOKEN})


def _cut(value: Any, own: Tensor | slice) -> Any:
    if isinstance(value, Mapping):
        return {layer: _cut(values, own) for layer, values in value.items()}
    if isinstance(value, Projection):
        return used_by(value, own)
    return None if value is None else value[own if isinstance(own, slice) else own.to(value.device)]
