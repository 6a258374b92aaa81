"""A budget as counts per image and decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import BudgetError
from vlmcompress.methods.composition.pipeline import ImagePlan, Pipeline, each, steps
from vlmcompress.tokens import Grid, Layout


@dataclass(frozen=True)
class Planner:
    """Turns the layouts of a call into counts per image and per decoder layer."""

    pipeline: Pipeline
    budget: Budget | None
    layers: int
    reason: str | None = None
    """Why this pipeline was chosen, where the user left it open."""

    def at(self, share: float) -> Planner:
        """This planner with a budget of `share` percent of the tokens."""
        return replace(self, budget=Budget(share, "percent"))

    def plan(
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
        self.check(layouts)
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
            raise unknown_size(self.budget)
        return self.pipeline.upstream_count(tile, self.layers, self.budget.tokens(tile))

    def check(self, layouts: Sequence[Layout | Grid]) -> None:
        """Raise what a call would, before anything is encoded.

        Raises:
            BudgetError: the budget is above the tokens of every image.
        """
        budget = self.budget
        if budget is None or budget.unit != "tokens" or not layouts:
            return
        largest = max(len(one) // (steps(one) if budget.per_frame else 1) for one in layouts)
        if 0 < largest < budget.amount:
            whole = "frame" if budget.per_frame and steps(layouts[0]) > 1 else "image"
            raise BudgetError(
                f"budget {budget} is above the {largest} visual tokens of the {whole} "
                f"({layouts[0]}): give 1 to {largest} or a share up to 100%"
            )


def unknown_size(budget: Budget | None) -> BudgetError:
    """For a budget that needs the size of the image where it is not known yet."""
    return BudgetError(
        f"budget {budget} cannot be met inside the vision encoder, which does not know the size of "
        'the image: give a share such as "25%"'
    )
