"""Which method and budget a question is asked with, and what is taken where nobody says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmcompress import defaults
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.memory import bytes_of
from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.method import Method
from vlmcompress.tokens import Grid
from vlmcompress.tuned import ProfileLike, asked_for

MethodLike = str | Method | Sequence[Method]
BudgetLike = int | float | str | Budget | None


@dataclass(frozen=True)
class Setting:
    """How a call is reduced."""

    label: str
    """The method as the user wrote it."""
    methods: str | tuple[Method, ...]
    """"auto" where it depends on the model which."""
    budget: BudgetLike
    positions: str = "keep"
    text_tower: Any = None
    max_memory: int | str | None = None
    profile: ProfileLike | None = None
    """Of `vlmcompress tune`, for "auto"."""

    @property
    def name(self) -> str:
        """`divprune at 25%`."""
        return self.label if self.budget is None else f"{self.label} at {self.budget}"

    @property
    def whole(self) -> Setting:
        """All visual tokens, and what else this setting says of the call."""
        return replace(FULL, positions=self.positions, max_memory=self.max_memory)


FULL = Setting("full", "full", None)
"""All visual tokens."""


def setting_of(
    method: MethodLike | None = None,
    budget: BudgetLike = None,
    options: Mapping[str, Any] | None = None,
    positions: str = "keep",
    text_tower: Any = None,
    max_memory: int | str | None = None,
    profile: ProfileLike | None = None,
) -> Setting:
    """A setting with what is left out filled in, checked as far as that goes without a model.

    Without a method it is `defaults.METHOD`. Without a budget it is the method's own setting, or
    `defaults.BUDGET` where it has none or no method was named. With a profile the method is "auto".

    Raises:
        VLMCompressError: an unknown method or option, a malformed budget or one beside a threshold,
            a malformed size, or a profile that cannot be read or stands beside a method.
    """
    asked = asked_for(method, profile)
    spec = defaults.METHOD if asked is None else asked
    methods, has_default = _methods(spec, options or {})
    if max_memory is not None:
        bytes_of(max_memory)
    if budget is not None:
        parsed = Budget.parse(budget)
        if spec != defaults.AUTO:
            parse(spec, **(options or {})).check_thresholds(parsed)
    elif method is None or not has_default:
        budget = defaults.BUDGET
    label = spec if isinstance(spec, str) else parse(spec).name
    return Setting(label, methods, budget, positions, text_tower, max_memory, profile)


def _methods(spec: MethodLike, options: Mapping[str, Any]) -> tuple[str | tuple[Method, ...], bool]:
    """The methods of a spec, and whether they can work without a budget."""
    if spec == defaults.AUTO:
        if options:
            raise VLMCompressError(f"{defaults.AUTO} has no options, got {', '.join(options)}")
        return defaults.AUTO, False
    pipeline = parse(spec, **options)
    return pipeline.methods, _works_without_budget(pipeline)


def _works_without_budget(pipeline: Pipeline) -> bool:
    """Whether every method has a setting of its own.

    All decoder methods do, and theirs may be for one depth only, which nobody knows before the
    model is loaded; the others do not look at the depth.
    """
    before = [method for method in pipeline.methods if method is not pipeline.decoder]
    try:
        if before:
            pipeline.of(before).plan(Grid(1, 24, 24), 2, None)
    except BudgetError:
        return False
    return True
