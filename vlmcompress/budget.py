"""A budget: how many visual tokens an image may cost, as the true mean over decoder layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmcompress.errors import BudgetError
from vlmcompress.methods.pipeline import ImagePlan, Pipeline, steps
from vlmcompress.tokens import Grid, Layout

_ALLOWED = 'a count such as 64 or a share such as "25%", for each frame "16 per frame"'
_PATTERN = re.compile(
    r"(?P<number>[+-]?\d+(\.\d*)?|[+-]?\.\d+)\s*(?P<unit>%?)(?P<frames>\s+per\s+frame)?"
)


@dataclass(frozen=True)
class Budget:
    """Visual tokens per image (per clip for a video), mean over decoder layers."""

    amount: float
    unit: Literal["tokens", "percent"]
    per_frame: bool = False
    """Whether each temporal step of a clip's grid gets this many; an image is one step."""

    @classmethod
    def parse(cls, given: int | float | str | Budget) -> Budget:
        """Read `64`, `"64"`, `"25%"`, `"16 per frame"` or `"25% per frame"`.

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
        amount, per_frame = float(found["number"]), found["frames"] is not None
        if amount <= 0:
            raise BudgetError(f"budget {given!r} must be above zero: give {_ALLOWED}")
        if found["unit"]:
            if amount > 100:
                raise BudgetError(f"budget {given!r} is above 100%")
            return cls(amount, "percent", per_frame)
        if amount != int(amount):
            raise BudgetError(f"budget {given!r} is not a whole number of tokens: give {_ALLOWED}")
        return cls(amount, "tokens", per_frame)

    def tokens(self, layout: Layout | Grid) -> float:
        """The budget of one image in tokens; an image below the budget is kept whole.

        A share is rounded to whole tokens, half to even, and is at least one; where it is one per
        frame, of each frame.
        """
        frames = steps(layout) if self.per_frame else 1
        count = len(layout) // frames
        if self.unit == "percent":
            return max(1, round(self.amount / 100 * count)) * frames
        return min(self.amount, count) * frames

    def __str__(self) -> str:
        unit = "%" if self.unit == "percent" else ""
        return f"{self.amount:g}{unit}{' per frame' if self.per_frame else ''}"


@dataclass(frozen=True)
class Planner:
    """Turns the layouts of a call into counts per image and per decoder layer."""

    pipeline: Pipeline
    budget: Budget | None
    layers: int

    def __call__(self, layouts: Sequence[Layout | Grid]) -> list[ImagePlan]:
        """One plan per image.

        Raises:
            BudgetError: the budget is above the tokens of every image, or out of the method's
                reach.
        """
        budget = self.budget
        if budget is None:
            return [self.pipeline.plan(layout, self.layers, None) for layout in layouts]
        sizes = [len(one) // (steps(one) if budget.per_frame else 1) for one in layouts]
        largest = max(sizes, default=0)
        if budget.unit == "tokens" and layouts and budget.amount > largest:
            whole = "frame" if budget.per_frame and steps(layouts[0]) > 1 else "image"
            raise BudgetError(
                f"budget {budget} is above the {largest} visual tokens of the {whole} "
                f"({layouts[0]}): give 1 to {largest} or a share up to 100%"
            )
        return [
            self.pipeline.plan(layout, self.layers, budget.tokens(layout), budget.per_frame)
            for layout in layouts
        ]
