"""What a server takes of a profile of `vlmcompress tune`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import CompositionError, VLMCompressError
from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.serving.counts import pipeline_of
from vlmcompress.tuned import ProfileLike, Tuned, asked_for, how_sure


def served_method(
    profile: ProfileLike,
    budget: int | float | str | Budget | None,
    config: Mapping[str, Any],
    method: str | None = None,
) -> tuple[str, str]:
    """What a server takes of a profile in the place of a method, and a line that says how sure.

    Args:
        profile: see `Tuned.read`.
        budget: that the server is given.
        config: of the model, as its `config.json` has it; no weights are loaded and compared here.
        method: that is named besides; only "auto" goes with a profile.

    Raises:
        CompositionError: another method is named, or none of the profile can be served.
        UnsupportedModelError: the profile is of another type of model.
        BudgetError: see `Tuned.nearest`.
        VLMCompressError: the profile cannot be read.
    """
    asked_for(method, profile)
    tuned, asked = Tuned.read(profile), None if budget is None else Budget.parse(budget)
    tuned.check_model({"type": config.get("model_type")})
    name = tuned.nearest(asked, _tokens(config))
    return _best(tuned, name, tuned.tuned_at(name, asked))


def _tokens(config: Mapping[str, Any]) -> int | None:
    """Of every picture of a model, where all have as many: then a count is a share.

    The adapters of the models that are served read it off the configuration.
    """
    from transformers import AutoConfig

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        return None
    try:
        whole = AutoConfig.for_model(**copy.deepcopy(dict(config)))
        grid = FAMILIES.get(kind)().fixed_grid(SimpleNamespace(config=whole))  # type: ignore[arg-type]
    except Exception:  # damaged in any way, which is said by vLLM
        return None
    return None if grid is None else len(grid)


def _best(tuned: Tuned, budget: str, tuned_at: str) -> tuple[str, str]:
    """The first method of a profile that can be served, and a line that says what it is.

    Args:
        tuned: the profile.
        budget: one of its own.
        tuned_at: how the line begins.

    Raises:
        CompositionError: none of them can be served.
    """
    first: str | None = None
    for row in tuned.rows(budget):
        spec = str(row["method"])
        try:
            pipeline_of(spec)
        except VLMCompressError as error:
            first = first or str(error)
            continue
        if first is None:
            return spec, f"{tuned_at}: {how_sure(tuned.budgets[budget])}"
        low, high = row["agreement_interval"]
        return spec, (
            f"{tuned_at}: {first}; the best that can be served is {spec}, which says what "
            f"the whole model says in {row['agreement']:.1%} ({100 * low:.1f} to "
            f"{100 * high:.1f}) of {row['n']} answers"
        )
    raise CompositionError(
        f"profile {tuned.path!r} has no method at {budget} that can be served: {first}"
    )
