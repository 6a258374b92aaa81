"""What a schedule file says besides the schedule."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch
import transformers

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import BudgetError
from vlmcompress.methods.shared.calibrated_schedules import VERSION
from vlmcompress.patches.families.registry import family_of
from vlmcompress.version import __version__

_DIGITS = 6


def depth(model: Any) -> int:
    """Layers of the model's decoder."""
    family = family_of(model)
    return len(family.layers(family.base(model)))


def share_of(budget: str | None) -> float | None:
    """A budget as a share; counts depend on the picture, a schedule file does not.

    Raises:
        BudgetError: malformed, or no share.
    """
    if budget is None:
        return None
    parsed = Budget.parse(budget)
    if parsed.unit != "percent" or parsed.per_frame:
        raise BudgetError(f'budget {budget!r} is no share: calibrate for one such as "50%"')
    return parsed.amount / 100


def document(
    kind: str, name: str, layers: int, measured: dict[str, Any], schedule: dict[str, Any]
) -> dict[str, Any]:
    """The contents of a schedule file, numbers rounded for reading.

    Args:
        kind: "adaptinfer" or "gsearch".
        name: of the model.
        layers: of its decoder.
        measured: on what, and what came out.
        schedule: `shares` for each layer, and what they follow from.
    """
    whole = {
        "kind": kind,
        "version": VERSION,
        "model": {"name": name, "layers": layers},
        **schedule,
        "measured": measured,
        "provenance": {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "versions": {
                "vlmcompress": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        },
    }
    rounded: dict[str, Any] = _round(whole)
    return rounded


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _round(one) for key, one in value.items()}
    return [_round(one) for one in value] if isinstance(value, list | tuple) else value
