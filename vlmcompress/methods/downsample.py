"""A smaller picture."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vlmcompress.methods.contracts.before_projector import Resizer
from vlmcompress.methods.contracts.method import Stage
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.grid_shapes import Pooler
from vlmcompress.ops.pool import window
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Downsample(Resizer, Pooler):
    """Show the model fewer pixels: the baseline that every method has to beat.

    Where the vision encoder takes pictures of any size, they are made smaller before it, so that it
    works less, too. Elsewhere its features are averaged on their grid, as `pool` does. The shape is
    that of `pool` for the same budget; clips keep all their frames.
    """

    name: ClassVar[str] = "downsample"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "makes the picture smaller"
    stages: ClassVar[frozenset[Stage]] = frozenset({"pixels", "projector"})

    stage: Literal["auto", "pixels", "projector"] = "auto"
    """Where: on pixels if the model allows it ("auto"), or always at one of the two."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))

    @property
    def acts_at(self) -> Stage:
        return "pixels" if self.stage == "auto" else self.stage

    def settled(self, family: str, stages: Collection[Stage]) -> Downsample:
        """At the projector where "auto" cannot act on pixels."""
        if self.stage == "auto" and "pixels" not in stages:
            return replace(self, stage="projector")
        super().settled(family, stages)
        return self

    def shape(self, grid: Grid, budget: float | None) -> Grid:
        """The grid of `pool` for this budget.

        Raises:
            BudgetError: there is none, or it is below a token for each frame.
        """
        return self.output(grid, budget)

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Means of windows."""
        return window(tokens.features, tokens.grid, (shape.h, shape.w))
