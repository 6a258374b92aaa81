"""A budget: how many visual tokens an image may cost, as the true mean over decoder layers.

Or what a call may cost up to its first token, which becomes a share of the tokens once the prompt
is known.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Literal

from vlmcompress.errors import BudgetError
from vlmcompress.methods.pipeline import ImagePlan, Pipeline, each, steps
from vlmcompress.tokens import Grid, Layout

_ALLOWED = (
    'a count such as 64 or a share such as "25%", for each frame "16 per frame", or up to the '
    'first token a share of the FLOPs such as "0.4 flops" or a time such as "120 ms"'
)
_PATTERN = re.compile(
    r"(?P<number>[+-]?\d+(\.\d*)?|[+-]?\.\d+)"
    r"(\s*(?P<percent>%?)(?P<frames>\s+per\s+frame)?|\s*(?P<cost>flops|ms))"
)
_AHEAD = 8
"""Shares looked at beyond the first that costs too much: rounding makes costs rise unevenly."""


@dataclass(frozen=True)
class Budget:
    """Visual tokens per image (per clip for a video), mean over decoder layers; or a cost."""

    amount: float
    unit: Literal["tokens", "percent", "flops", "ms"]
    """"flops" is a share, up to 1, of what the full model computes up to the first token, and "ms"
    the time to that token. One share of the tokens of all images then meets the cost."""
    per_frame: bool = False
    """Whether each temporal step of a clip's grid gets this many; an image is one step."""

    @classmethod
    def parse(cls, given: int | float | str | Budget) -> Budget:
        """Read `64`, `"64"`, `"25%"`, `"16 per frame"`, `"0.4 flops"` or `"120 ms"`.

        Raises:
            BudgetError: malformed, not positive, a broken count, or a share above the whole.
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
        if found["cost"]:
            if found["cost"] == "flops" and amount > 1:
                raise BudgetError(
                    f"budget {given!r} is more than the full model computes: give above 0 to 1, "
                    'such as "0.4 flops"'
                )
            return cls(amount, found["cost"])  # type: ignore[arg-type]
        if found["percent"]:
            if amount > 100:
                raise BudgetError(f"budget {given!r} is above 100%")
            return cls(amount, "percent", per_frame)
        if amount != int(amount):
            raise BudgetError(f"budget {given!r} is not a whole number of tokens: give {_ALLOWED}")
        return cls(amount, "tokens", per_frame)

    @property
    def is_cost(self) -> bool:
        """Whether it says what a call may cost, not how many tokens it may keep."""
        return self.unit in ("flops", "ms")

    def tokens(self, layout: Layout | Grid) -> float:
        """The budget of one image in tokens; an image below the budget is kept whole.

        A share is rounded to whole tokens, half to even, and is at least one; where it is one per
        frame, of each frame.

        Raises:
            BudgetError: it is a cost, which no image has by itself.
        """
        if self.is_cost:
            raise BudgetError(
                f"budget {self} becomes a number of tokens only with a model and a prompt: give a "
                'count such as 64 or a share such as "25%"'
            )
        frames = steps(layout) if self.per_frame else 1
        count = len(layout) // frames
        if self.unit == "percent":
            return max(1, round(self.amount / 100 * count)) * frames
        return min(self.amount, count) * frames

    def __str__(self) -> str:
        unit = {"tokens": "", "percent": "%"}.get(self.unit, f" {self.unit}")
        return f"{self.amount:g}{unit}{' per frame' if self.per_frame else ''}"


@dataclass(frozen=True)
class Planner:
    """Turns the layouts of a call into counts per image and per decoder layer."""

    pipeline: Pipeline
    budget: Budget | None
    layers: int
    reason: str | None = None
    """Why this pipeline was chosen, where the user left it open."""

    def at(self, share: float) -> Planner:
        """The same for a share of the tokens in percent."""
        return replace(self, budget=Budget(share, "percent"))

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
        if budget.amount > largest:
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


def different_shares(sizes: Collection[int]) -> list[float]:
    """Shares in percent, ascending to 100: one for each way in which one rounds to whole tokens.

    Args:
        sizes: tokens of the images that it is a share of.
    """
    steps = sorted({(2 * k + 1) / (2 * size) for size in set(sizes) for k in range(size)})
    return [*(50 * (low + high) for low, high in pairwise(steps)), 100.0]


def largest_share(
    cost: Callable[[float], float], shares: Sequence[float], budget: Budget, name: str
) -> tuple[float, float]:
    """The largest share that is within a budget, and what it costs.

    Args:
        cost: of a share, in the unit of the budget, falling with it but for rounding; raises
            BudgetError for a share that is out of the pipeline's reach.
        shares: to choose from, ascending.
        budget: a cost.
        name: of the pipeline, for messages.

    Raises:
        BudgetError: the smallest share in reach costs more; says how much.
    """
    dearest = cost(shares[-1])  # where not even this is in reach, the error is the user's
    if dearest <= budget.amount:
        return shares[-1], dearest

    @cache
    def at(place: int) -> float:
        """-inf where it is out of reach, so that costs rise from the first place on."""
        try:
            return cost(shares[place])
        except BudgetError:
            return -math.inf

    places = range(len(shares))
    first = bisect_left(places, True, key=lambda place: at(place) > -math.inf)
    after = bisect_right(places, budget.amount, lo=first, key=at)
    near = places[max(first, after - 1) : after + _AHEAD]
    within = [place for place in near if at(place) <= budget.amount]
    if not within:
        least = f"{math.ceil(at(first) * 1000) / 1000:g}"
        raise BudgetError(
            f"budget {budget} is out of reach: {name} costs {least} {budget.unit} or more on this "
            f"prompt; give {least} {budget.unit} or more, or combine it with another method"
        )
    return shares[within[-1]], at(within[-1])
