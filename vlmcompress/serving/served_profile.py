"""What a server takes of a profile of `vlmcompress tune`."""

from __future__ import annotations

from vlmcompress.errors import CompositionError, VLMCompressError
from vlmcompress.serving.counts import pipeline_of
from vlmcompress.tuned import Tuned, how_sure


def best_served(tuned: Tuned, budget: str) -> tuple[str, str]:
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
