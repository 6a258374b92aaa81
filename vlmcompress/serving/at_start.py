"""What a server decides once at its start: `auto`, and budgets that are a share of the FLOPs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vlmcompress.auto import auto_method
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.budget.search import different_shares, largest_share
from vlmcompress.defaults import AUTO
from vlmcompress.flops.exact import first_token
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.serving.counts import pipeline_of
from vlmcompress.serving.settings import Settings, refuse_time
from vlmcompress.tokens import Grid

_PICTURE, _TEXT = Grid(1, 24, 24), 32
"""What costs are worked out for where the family has no grid of its own, and the prompt beside."""


def settled(settings: Settings, config: Any) -> tuple[Settings, str]:
    """Settings that name a method, and no cost; and a remark for the log.

    Args:
        settings: of the server.
        config: of the model, as transformers reads it.

    Raises:
        VLMCompressError: the budget cannot be met so, or nothing fits the model.
    """
    budget = None if settings.budget is None else Budget.parse(settings.budget)
    refuse_time(budget)
    if settings.method != AUTO and (budget is None or not budget.is_cost):
        return settings, ""
    parts = ModelParts.of(_weightless(config))
    reason = ""
    if settings.method == AUTO:
        choice = auto_method(replace(parts, family=_behind_the_projector(parts.family)), budget)
        settings, reason = replace(settings, method=choice.spec), f" ({choice.reason})"
    if budget is not None and budget.is_cost:
        share = share_for(parts, settings.method, budget)
        settings = replace(settings, budget=str(Budget(share, "percent")))
        reason += f" (the share that meets {budget} for a typical picture)"
    return settings, reason


def share_for(parts: ModelParts, method: str, budget: Budget) -> float:
    """The percentage of the tokens of a typical picture that meets a share of the FLOPs."""
    model, layers = parts.model, len(parts.layers)
    grid, shape = parts.family.fixed_grid(model) or _PICTURE, shape_of(model)
    planner = Planner(pipeline_of(method), budget, layers)

    def total(plan: ImagePlan | None) -> float:
        return first_token(shape, load_of(model, [(0, grid, plan)], [_TEXT])).total

    full = total(None)
    share, _ = largest_share(
        lambda percent: total(planner.at(percent).plan([grid])[0]) / full,
        different_shares([len(grid)]),
        budget,
        method,
    )
    return float(f"{share:.6g}")


def _weightless(config: Any) -> nn.Module:
    """The model of transformers without weights; `config` is left alone."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    return model


def _behind_the_projector(family: Family) -> Family:
    only = copy.copy(family)
    only.stages = ("projector",)
    return only
