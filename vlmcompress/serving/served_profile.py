"""What a server takes of a profile of `vlmcompress tune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import CompositionError, VLMCompressError
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
        config: of the model; only its type is looked at, as the weights are not loaded here.
        method: that is named besides; only "auto" goes with a profile.

    Raises:
        CompositionError: another method is named, or none of the profile can be served.
        UnsupportedModelError: the profile is of another type of model.
        BudgetError: see `Tuned.nearest`.
        VLMCompressError: the profile cannot be read.
    """
    asked_for(method, profile)
    tuned = Tuned.read(profile)
    tuned.check_model({"type": config.get("model_type")})
    return _best(tuned, tuned.nearest(None if budget is None else Budget.parse(budget)))


def _best(tuned: Tuned, budget: str) -> tuple[str, str]:
    """The first method of a profile that can be served, and a line that says what it is.

    Args:
        tuned: the profile.
        budget: one of its own.

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
            return spec, f"tuned at {budget}: {how_sure(tuned.budgets[budget])}"
        low, high = row["agreement_interval"]
        return spec, (
            f"tuned at {budget}: {first}; the best that can be served is {spec}, which says what "
            f"the whole model says in {row['agreement']:.1%} ({100 * low:.1f} to "
            f"{100 * high:.1f}) of {row['n']} answers"
        )
    raise CompositionError(
        f"profile {tuned.path!r} has no method at {budget} that can be served: {first}"
    )
