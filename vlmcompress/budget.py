"""A budget: how many visual tokens an image may cost, as the true mean over decoder layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmcompress.errors import BudgetError
from vlmcompress.methods.pipeline import ImagePlan, Pipeline
from vlmcompress.tokens import Grid

_ALLOWED = 'a count such as 64 or a share such as "25%"'
_PATTERN = re.compile(r"(?P<number>[+-]?\d+(\.\d*)?|[+-]?\.\d+)\s*(?P<unit>%?)")


@dataclass(frozen=True)
class Budget:
    """Visual tokens per image (per clip for a video), mean over decoder layers."""

    amount: float
    unit: Literal["tokens", "percent"]

    @classmethod
    def parse(cls, given: int | float | str | Budget) -> Budget:
        """Read `64`, `"64"` or `"25%"`.

        Raises:
            BudgetError: malformed, not positive, a broken count, or a share above 100 %.
        """
        if isinstance(given, Budget):
            return given
        if isinstance(given, bool) or not isinstance(given, (int, float, str)):
            raise BudgetError(f"budget {given!r} is not understood: give {_ALLOWED}")
        found = _PATTERN.fullmatch(str(given).strip())
        if found is None:
            raise BudgetError(f"budget {given!r} is not understood: give {_ALLOWED}")
        amount = float(found["number"])
        if amount <= 0:
            raise BudgetError(f"budget {given!r} must be above zero: give {_ALLOWED}")
        if found["unit"]:
            if amount > 100:
                raise BudgetError(f"budget {given!r} is above 100%")
            return cls(amount, "percent")
        if amount != int(amount):
            raise BudgetError(f"budget {given!r} is not a whole number of tokens: give {_ALLOWED}")
        return cls(amount, "tokens")

    def tokens(self, grid: Grid) -> float:
        """The budget of one image with `grid` in tokens; an image below the budget is kept whole.

        A share is rounded to whole tokens, half to even, and is at least one.
        """
        count = len(grid)
        if self.unit == "percent":
            return max(1, round(self.amount / 100 * count))
        return min(self.amount, count)

    def __str__(self) -> str:
        return f"{self.amount:g}{'%' if self.unit == 'percent' else ''}"


@dataclass(frozen=True)
class Planner:
    """Turns the grids of a call into counts per image and per decoder layer."""

    pipeline: Pipeline
    budget: Budget | None
    layers: int

    def __call__(self, grids: Sequence[Grid]) -> list[ImagePlan]:
        """One plan per image.

        Raises:
            BudgetError: the budget is above the tokens of every image, or out of the method's
                reach.
        """
        budget = self.budget
        if budget is None:
            return [self.pipeline.plan(grid, self.layers, None) for grid in grids]
        largest = max((len(grid) for grid in grids), default=0)
        if budget.unit == "tokens" and grids and budget.amount > largest:
            raise BudgetError(
                f"budget {budget} is above the {largest} visual tokens of the image "
                f"({grids[0]}): give 1 to {largest} or a share up to 100%"
            )
        return [self.pipeline.plan(grid, self.layers, budget.tokens(grid)) for grid in grids]
