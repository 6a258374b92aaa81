"""A budget as counts per image and decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vlmcompress.budget.budget import Budget
from vlmcompress.errors import BudgetError
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.composition.shares import each, steps
from vlmcompress.tokens import Grid, Layout

_REMEMBERED = 256
"""Layouts whose plans are kept; a server of pictures of any size meets more."""


@dataclass(frozen=True)
class Planner:
    """Turns the layouts of a call into counts per image and per decoder layer."""

    pipeline: Pipeline
    budget: Budget | None
    layers: int
    reason: str | None = None
    """Why this pipeline was chosen, where the user left it open."""
    _known: dict[Layout | Grid, ImagePlan] = field(default_factory=dict, compare=False, repr=False)
    """Plans of layouts that came before: a schedule is a search."""

    def at(self, share: float) -> Planner:
        """This planner with a budget of `share` percent of the tokens."""
        return replace(self, budget=Budget(share, "percent"), _known={})

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
            BudgetError: the budget is out of the method's reach.
        """
        left = [None] * len(layouts) if left is None else left
        return [self._plan(*pair) for pair in zip(layouts, left, strict=True)]

    def _plan(self, layout: Layout | Grid, left: Sequence[Grid] | None) -> ImagePlan:
        if left is None and layout in self._known:
            return self._known[layout]
        budget = self.budget
        tokens, split = (
            (None, False) if budget is None else (budget.tokens(layout), budget.per_frame)
        )
        plan = self.pipeline.plan(layout, self.layers, tokens, split, left)
        if left is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[layout] = plan
        return plan

    def upstream(self, tile: Grid, whole: Layout | Grid | None) -> int:
        """Tokens that a method before the projector leaves of a tile, known before it is encoded.

        Args:
            tile: one of the grids that the vision encoder is given.
            whole: the image or clip that it belongs to; None where that is not known yet.

        Raises:
            BudgetError: a number of tokens without knowing of how many, or too few of them.
        """
        if self.budget is None:
            return self.pipeline.upstream_count(tile, self.layers, None)
        if whole is not None:
            total = self.budget.tokens(whole)
            self.pipeline.check_frames(total, len(whole) // len(tile))
            share = each(total, len(tile) / len(whole))
            return self.pipeline.upstream_count(tile, self.layers, share)
        if self.budget.unit != "percent":
            raise unknown_size(self.budget)
        return self.pipeline.upstream_count(tile, self.layers, self.budget.tokens(tile))

    def check(self, largest: int | None) -> None:
        """Refuse a budget beside a threshold, and a count that no image can reach.

        Args:
            largest: tokens of the largest image that the model takes; None where nothing limits
                them.

        Raises:
            BudgetError: there is a method with a threshold, or the budget is above that.
        """
        budget = self.budget
        if budget is not None:
            self.pipeline.check_thresholds(budget)
        if budget is None or budget.unit != "tokens" or largest is None:
            return
        if budget.amount > largest:
            raise BudgetError(
                f"budget {budget} is above the {largest} visual tokens that an image of this model "
                f"can have: give 1 to {largest} or a share up to 100%"
            )

    def notes(self, layout: Layout | Grid, plan: ImagePlan) -> list[str]:
        """What a report has to say of the plan of an image."""
        budget, size = self.budget, len(layout)
        if not size:
            return []
        if budget is None:
            methods, whole = self.pipeline.methods, plan.keep == size and not plan.schedule
            if not whole or any(m.adaptive or not m.takes_budget for m in methods):
                return []
            return [f"without a budget {self.pipeline.name} keeps all tokens of {layout}: give one"]
        frames = steps(layout) if budget.per_frame else 1
        if budget.unit == "tokens" and budget.amount * frames > size:
            return [f"the budget of {budget} is above its {size} tokens: all are kept"]
        return []


def unknown_size(budget: Budget | None) -> BudgetError:
    """For a budget that needs the size of the image where it is not known yet."""
    return BudgetError(
        f"budget {budget} cannot be met inside the vision encoder, which does not know the size of "
        'the image: give a share such as "25%"'
    )
