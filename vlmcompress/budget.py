"""A budget: how many visual tokens an image may cost, as the true mean over decoder layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmcompress.errors import BudgetError
from vlmcompress.methods.pipeline import ImagePlan, Pipeline, each, steps
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

    def __call__(
        self,
        layouts: Sequence[Layout | Grid],
        left: Sequence[Sequence[Grid] | None] | None = None,
    ) -> list[ImagePlan]:
        """One plan per image.

        Args:
            layouts: of the images.
            left: per image, what an upstream method left of each grid of its layout.

        Raises:
            BudgetError: the budget is above the tokens of every image, or out of the method's
                reach.
        """
        budget = self.budget
        left = [None] * len(layouts) if left is None else left
        pairs = zip(layouts, left, strict=True)
        if budget is None:
            return [self.pipeline.plan(one, self.layers, None, left=grids) for one, grids in pairs]
        self._check(budget, layouts)
        return [
            self.pipeline.plan(one, self.layers, budget.tokens(one), budget.per_frame, grids)
            for one, grids in pairs
        ]

    def upstream(self, tile: Grid, whole: Layout | Grid | None) -> int:
        """Tokens that a method before the projector leaves of a tile, known before it is encoded.

        Args:
            tile: one of the grids that the vision encoder is given.
            whole: the image or clip that it belongs to; None where that is not known yet.

        Raises:
            BudgetError: a number of tokens without knowing of how many.
        """
        if self.budget is None:
            return self.pipeline.upstream_count(tile, self.layers, None)
        if whole is not None:
            share = each(self.budget.tokens(whole), len(tile) / len(whole))
            return self.pipeline.upstream_count(tile, self.layers, share)
        if self.budget.unit != "percent":
            raise BudgetError(
                f"budget {self.budget} cannot be met inside the vision encoder, which does not "
                'know the size of the image: give a share such as "25%"'
            )
        return self.pipeline.upstream_count(tile, self.layers, self.budget.tokens(tile))

    def check(self, layouts: Sequence[Layout | Grid]) -> None:
        """Raise what a call would, before anything is encoded.

        Raises:
            BudgetError: the budget is above the tokens of every image.
        """
        if self.budget is not None:
            self._check(self.budget, layouts)

    def revised(self, plan: ImagePlan, kept: Sequence[int]) -> ImagePlan:
        """The plan of an image of which an adaptive method kept other counts."""
        return self.pipeline.revised(plan, kept)

    @staticmethod
    def _check(budget: Budget, layouts: Sequence[Layout | Grid]) -> None:
        sizes = [len(one) // (steps(one) if budget.per_frame else 1) for one in layouts]
        largest = max(sizes, default=0)
        if budget.unit == "tokens" and layouts and budget.amount > largest:
            whole = "frame" if budget.per_frame and steps(layouts[0]) > 1 else "image"
            raise BudgetError(
                f"budget {budget} is above the {largest} visual tokens of the {whole} "
                f"({layouts[0]}): give 1 to {largest} or a share up to 100%"
            )
