"""How few tokens each layer needs, searched on a model: G-Search, and the sigmoid through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmcompress.calibrate.agreement import agreement, next_tokens
from vlmcompress.calibrate.document import depth, document, share_of
from vlmcompress.calibrate.questions import CalibrationQuestion, batches
from vlmcompress.defaults import CALIBRATE_TOLERANCE
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.psigmoid import PSigmoid, sigmoid_shares, solve_alpha
from vlmcompress.methods.shared.calibrated_schedules import cut

STEPS = 16
"""Shares are searched in steps of 1 / 16."""
"""Share of the questions that may get another first word. Ours."""
_KAPPAS = tuple(0.05 * 1.1**step for step in range(56))  # to 9.4: a single step in the end


def calibrate_gsearch(
    model: Any,
    processor: Any,
    asked: Sequence[CalibrationQuestion],
    *,
    name: str,
    budget: str | None = None,
    tolerance: float = CALIBRATE_TOLERANCE,
    batch: int = 8,
) -> dict[str, Any]:
    """Find shares and kappa for `psigmoid(table=...)`.

    The shares are searched layer by layer against the model on all tokens; kappa is the steepness
    of the sigmoid that fits them best, alpha then meets the budget.

    Args:
        model: of a supported family.
        processor: the model's.
        asked: pictures and questions.
        name: of the model, for the file.
        budget: a share such as "50%"; None for the mean of what was found.
        tolerance: share of the questions, in [0, 1), whose next token may be another one than that
            of the model on all tokens.
        batch: questions at a time.

    Returns:
        What a schedule file holds.

    Raises:
        VLMCompressError: no questions, or a tolerance out of range.
        BudgetError: the budget is no share, or below what layer 0 alone costs.
    """
    if not 0 <= tolerance < 1:
        raise VLMCompressError(f"tolerance must be at least 0 and below 1, got {tolerance:g}")
    share, layers = share_of(budget), depth(model)
    if not asked:
        raise VLMCompressError("calibration needs at least one question, got none")
    if share is not None and share <= 1 / layers:
        raise BudgetError(
            f"budget {budget!r} is out of reach: all tokens enter the first of {layers} layers, so "
            f"give more than {100 / layers:.4g}%"
        )
    inputs = list(batches(model, processor, asked, batch))
    full = next_tokens(model, inputs, "full")

    def agree(found: Sequence[int]) -> float:
        held = [*found, *[found[-1]] * (layers - len(found))]
        trial = _Trial(shares=tuple(count / STEPS for count in held))
        return agreement(next_tokens(model, inputs, trial), full)

    found = [count / STEPS for count in search(agree, layers, tolerance)]
    mean = sum(found) / layers
    kappa = fit_kappa(found)
    share = mean if share is None else share
    alpha = solve_alpha(layers, kappa, share, all_enter=True)
    measured = {"samples": len(asked), "tolerance": tolerance, "found": found, "mean": mean}
    schedule = {
        "shares": sigmoid_shares(layers, kappa, alpha, all_enter=True),
        "kappa": kappa,
        "alpha": alpha,
        "budget": budget,
    }
    return document("gsearch", name, layers, measured, schedule)


def search(agree: Callable[[Sequence[int]], float], layers: int, tolerance: float) -> list[int]:
    """The smallest count of each layer, the earlier ones found, that keeps the agreement.

    Of what may be lost each layer has an equal part: up to layer i the agreement stays at least
    1 - tolerance * i / (layers - 1). By bisection, so it is the smallest where agreement rises with
    the count.

    Args:
        agree: agreement of counts of the first layers in `STEPS`; the last one holds for all later
            layers, too.
        layers: of the decoder.
        tolerance: what all layers together may lose.

    Returns:
        A count from 1 to `STEPS` for each layer, never rising; the first is `STEPS`.
    """
    found = [STEPS]
    for layer in range(1, layers):
        least = 1 - tolerance * layer / (layers - 1) - 1e-9
        low, high = 0, found[-1]
        while high - low > 1:
            middle = (low + high) // 2
            if agree([*found, middle]) >= least:
                high = middle
            else:
                low = middle
        found.append(high)
    return found


def fit_kappa(shares: Sequence[float]) -> float:
    """Steepness of the sigmoid of the same mean that is nearest in squares; of equals the least.

    Args:
        shares: [L], 1 for the first.
    """
    layers = len(shares)
    mean = sum(shares) / layers

    def distance(kappa: float) -> float:
        alpha = solve_alpha(layers, kappa, mean, all_enter=True)
        curve = sigmoid_shares(layers, kappa, alpha, all_enter=True)
        return math.fsum((a - b) ** 2 for a, b in zip(shares, curve, strict=True))

    return min(_KAPPAS, key=distance)


@dataclass(frozen=True)
class _Trial(PSigmoid):
    """Given shares, ranked as `psigmoid` ranks."""

    name: ClassVar[str] = "gsearch-trial"
    summary: ClassVar[str] = "keeps given shares"

    shares: tuple[float, ...] = ()

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """At least one token in every layer."""
        return cut(self.shares, tokens, least=1)
