"""From what a user asks for to an engine that can be put on the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from torch import nn

from vlmcompress.budget.budget import Budget
from vlmcompress.budget.memory import bytes_of
from vlmcompress.budget.planner import Planner
from vlmcompress.defaults import AUTO
from vlmcompress.errors import CompositionError, UntestedModelWarning, VLMCompressError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.method import Method
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.engine import Engine
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.families.standing import standing_of
from vlmcompress.patches.families.wrapped import taken_out
from vlmcompress.patches.hooks.compiled import check_compiled
from vlmcompress.patches.signals.signals import Signals
from vlmcompress.patches.signals.text_tower import LongText
from vlmcompress.patches.signals.text_tower import check as check_text_tower
from vlmcompress.tuned import ProfileLike, asked_for, choice_for

POSITIONS = ("keep", "renumber")
ORDERS = ("raster", "method")


def engine_for(
    model: nn.Module,
    method: str | Method | Sequence[Method] | None,
    budget: int | SupportsFloat | str | Budget | None,
    options: Mapping[str, Any],
    *,
    positions: str,
    order: str,
    processor: Any,
    text_tower: str | Path | tuple[nn.Module, Any] | LongText | None,
    max_memory: int | str | None,
    profile: ProfileLike | None,
) -> Engine:
    """An engine that is not on its model yet. Arguments and errors are those of `compress`."""
    _one_of("positions", positions, POSITIONS)
    _one_of("order", order, ORDERS)
    limit = None if max_memory is None else bytes_of(max_memory)
    check_text_tower(text_tower)
    method = asked_for(method, profile)
    pipeline = None if method == AUTO else parse(method, **options)
    parsed = None if budget is None else Budget.parse(budget)
    model = taken_out(model)
    if isinstance(model, nn.Module):
        check_compiled(model)
    family = family_of(model)
    family.check(model)
    parts = ModelParts.of(model, family)
    if positions == "renumber" and not family.renumbers:
        raise CompositionError(
            f"positions='renumber' is not defined for {family.name}: its positions have three axes"
        )
    reason = None
    if pipeline is None:
        if options:
            raise CompositionError(f"{AUTO} has no options, got {', '.join(options)}")
        choice = choice_for(parts, parsed, profile)
        pipeline, reason = parse(choice.spec), choice.reason
    pipeline = pipeline.for_stages(family.name, family.stages)
    planner = Planner(pipeline, parsed, len(parts.layers), reason)
    planner.check(family.largest_image(model))
    grid = family.fixed_grid(model)
    if grid is not None:
        # A budget that cannot be met fails here rather than inside generate().
        (planner.at(100) if parsed is not None and parsed.is_cost else planner).plan([grid])
    signals = Signals(parts, pipeline, processor, text_tower)
    return Engine(Installed.on(parts, planner, signals, positions, order, limit))


def warn_untested(engine: Engine, stacklevel: int) -> None:
    """Say so if nobody has tested such a model.

    Args:
        engine: that is on a model.
        stacklevel: of the caller whose line is named, as for `warnings.warn` here.
    """
    name = engine._on.family.name
    standing = standing_of(name)
    if standing.state != "tested":
        warnings.warn(
            f"{name} works by its structure but is not tested ({standing.reason}): "
            "`vlmcompress check MODEL` proves it on your weights",
            UntestedModelWarning,
            stacklevel=stacklevel,
        )


def _one_of(name: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise VLMCompressError(f"{name}={given!r} is not possible: give {' or '.join(allowed)}")
