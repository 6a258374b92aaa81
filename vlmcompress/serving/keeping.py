"""A plan carried out on the features of one image or clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Reducer
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.questions import answered
from vlmcompress.patches.decoder.selection import choose
from vlmcompress.patches.sequence.deepstack import group_means
from vlmcompress.serving.counts import ItemPlan, method_of
from vlmcompress.tokens import VisualTokens


def chosen(
    plan: ItemPlan, features: Tensor, width: int, fields: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Which visual tokens are kept, and the features of merged ones.

    Args:
        plan: of the image.
        features: [N, C] of its visual tokens. What is beside the first `width` (DeepStack) follows:
            of a merged token the mean.
        width: numbers of a feature that methods look at.
        fields: further fields of `VisualTokens`, as the method needs them.

    Returns:
        [K] int64, ascending, and [K, C] or None.

    Raises:
        VLMCompressError: the method could not judge the picture.
    """
    own, further = features[:, :width], features[:, width:]
    tokens = VisualTokens(own, plan.layout.grid, **fields)
    checks = Checks()
    method = method_of(plan.method)
    asking = choose(method, plan, tokens, plan.layout.parts, False, False, checks)  # type: ignore[arg-type]
    found = answered(asking, checks)
    checks.settle()
    assert isinstance(method, Reducer) == (found.merged is not None)
    if found.merged is None:
        return found.kept, None
    means = group_means(further, found.merged)
    return found.kept, torch.cat([found.merged.features, means], dim=1)


def evenly(plan: ItemPlan, device: torch.device) -> Tensor:
    """[K] int64: as many visual tokens as planned, spread over the image."""
    total, count = len(plan.layout), sum(kept for _, kept in plan.parts)
    return torch.linspace(0, total - 1, count, device=device).round().long()


def left(
    plan: ItemPlan, features: Tensor, kept: Tensor, merged: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The features that are left, as many as the prompt has places for, and where they stood.

    Args:
        plan: of the image.
        features: [given, C] of its visual tokens and separators.
        kept: [K] int64, as `chosen` gives it.
        merged: [K, C] that take the places of these, or None.

    Returns:
        [keep, C] and [keep] int64, ascending.
    """
    visual = plan.layout.visual.to(features.device)
    places = visual.nonzero()[:, 0]
    stays = ~visual
    stays[list(plan.emptied)] = False
    stays[places[kept]] = True
    if merged is not None:
        features = features.clone()
        features[places[kept]] = merged
    return features[stays], stays.nonzero()[:, 0]
