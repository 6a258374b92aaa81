"""Methods put together: how a budget becomes counts, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vlmcompress.errors import BudgetError
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.composition.shares import each, parts_of, shares_of, steps
from vlmcompress.methods.composition.together import by_stage
from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    PixelSelector,
    Resizer,
    TowerDropper,
)
from vlmcompress.methods.contracts.decoder import InDecoder, LateEntry, mean_tokens
from vlmcompress.methods.contracts.method import (
    OF_THE_QUESTION,
    AttentionBias,
    Method,
    ProjectorMethod,
    Stage,
)
from vlmcompress.methods.contracts.threshold import ByThreshold
from vlmcompress.tokens import Grid, Layout

Upstream = Resizer | PixelSelector | EncoderMethod | TowerDropper


@dataclass(frozen=True)
class Pipeline:
    """At most one method per stage, and one of the pixel and encoder stages.

    Composition rule: the decoder method keeps the proportions of its paper's default, unless that
    would leave the methods before it less than half of the way. Let s be the mean over layers of
    the share that its default schedule keeps of the tokens it is given. For a budget the methods
    before it are asked for k = round(min(budget / s, sqrt(N * budget))) tokens, and the decoder
    schedule is then solved for the budget from the number really kept. An upstream method (pixels,
    encoder) before a projector method goes half the way in proportion: it is asked for
    round(sqrt(N * k)) tokens, the projector method for k of those. A decoder method
    that decides by content (`adaptive`) follows its own rule then, and the budget is an upper
    bound. Where the user says at which layer tokens enter, the methods before it are asked for
    round(min(budget / s, N)). Without a budget each method uses its own default.
    """

    projector: ProjectorMethod | None
    decoder: InDecoder | None
    upstream: Upstream | None = None

    @classmethod
    def of(cls, methods: Sequence[Method]) -> Pipeline:
        """Each method at its stage; the order does not matter.

        Raises:
            CompositionError: two methods at one stage, or methods that do not go together.
        """
        at = by_stage(methods)
        upstream = at.get("pixels", at.get("encoder"))
        return cls(at.get("projector"), at.get("decoder"), upstream)  # type: ignore[arg-type]

    @property
    def methods(self) -> tuple[Method, ...]:
        """In the order in which an image meets them."""
        return tuple(m for m in (self.upstream, self.projector, self.decoder) if m is not None)

    @property
    def name(self) -> str:
        """For example "divprune+fastv"."""
        return "+".join(method.name for method in self.methods)

    @property
    def reads_question(self) -> bool:
        """Whether what is kept depends on the question: by a signal, or between decoder layers.

        What it drops may then be what a later question about the same pictures asks for.
        """
        asks = {choice for need in self.needs for choice in need.split("|")}
        return bool(asks & OF_THE_QUESTION) or not (self.decoder is None or self.enters_late)

    @property
    def enters_late(self) -> bool:
        """Whether visual tokens may enter after the first layer of the decoder."""
        return isinstance(self.decoder, LateEntry)

    @property
    def needs(self) -> frozenset[str]:
        """Signals that have to be collected, as methods name them (`Method.asks`)."""
        return frozenset().union(*(method.asks for method in self.methods))

    @property
    def attention_bias(self) -> AttentionBias | None:
        """What is added to the decoder's attention logits."""
        return None if self.projector is None else self.projector.attention_bias

    def for_stages(self, family: str, stages: Collection[Stage]) -> Pipeline:
        """The pipeline as it acts in a model that lets methods in at `stages`.

        Args:
            family: its name, for messages.
            stages: where it lets methods in.

        Raises:
            CompositionError: a method acts at another stage, and cannot do otherwise.
        """
        return Pipeline.of([method.settled(family, stages) for method in self.methods])

    def upstream_count(self, grid: Grid, layers: int, budget: float | None) -> int:
        """Tokens that the upstream method leaves of an image or tile of the given grid.

        Args:
            grid: of its tokens.
            layers: of the decoder.
            budget: its share of the image's budget; None for the default.

        Raises:
            BudgetError: see `plan`.
        """
        assert self.upstream is not None
        return self.upstream.keep_count(grid, self._upstream_ask(grid, layers, budget))

    def _upstream_ask(self, grid: Grid, layers: int, budget: float | None) -> float | None:
        if budget is None:
            return None
        self._check_budget(budget)
        ask = self._before_decoder(len(grid), layers, budget)
        return ask if self.projector is None else round(math.sqrt(len(grid) * ask))

    def _left(self, grid: Grid, layers: int, budget: float | None) -> Grid:
        """What the upstream method leaves of a grid, by its own rule."""
        if isinstance(self.upstream, Resizer):
            return self.upstream.shape(grid, self._upstream_ask(grid, layers, budget))
        if isinstance(self.upstream, PixelSelector | TowerDropper):
            return Grid(1, 1, self.upstream_count(grid, layers, budget))
        self.check_frames(budget, grid.t)
        frame, share = Grid(1, grid.h, grid.w), each(budget, 1 / grid.t)
        return Grid(grid.t, 1, self.upstream_count(frame, layers, share))

    def check_frames(self, budget: float | None, frames: int) -> None:
        """A vision tower leaves at least a token of each frame, and nothing may come behind it.

        Raises:
            BudgetError: there are more frames than tokens in the budget.
        """
        alone = isinstance(self.upstream, EncoderMethod) and len(self.methods) == 1
        if alone and budget is not None and budget < frames:
            raise BudgetError(
                f"{self.name} leaves at least 1 token of each of {frames} frames, the budget is "
                f"{budget:g}: give {frames} tokens or more, or combine it with another method"
            )

    def plan(
        self,
        layout: Layout | Grid,
        layers: int,
        budget: float | None,
        per_frame: bool = False,
        left: Sequence[Grid] | None = None,
    ) -> ImagePlan:
        """Counts for one image. Several grids share a budget in proportion to their tokens.

        Args:
            layout: of its visual tokens; none at all keep none.
            layers: of the decoder.
            budget: mean over decoder layers of the image's visual tokens; None for the defaults.
            per_frame: the projector method meets each temporal step by itself and keeps the same
                number of each. The decoder method ranks a clip as a whole all the same.
            left: what the upstream method really left of each grid of the layout; None to take
                what it was asked for.

        Raises:
            BudgetError: the budget is no finite number of 0 or more, cannot be met, is given to a
                method that takes none, or is missing for a method without a default.
        """
        if budget is not None:
            self._check_budget(budget)
        if not len(layout):
            return ImagePlan((), {}, layers)
        split = per_frame and steps(layout) > 1
        if split and isinstance(self.upstream, PixelSelector | TowerDropper):
            raise BudgetError(
                f"{self.upstream.name} looks at a clip as a whole: give a budget for all of it, "
                "not per frame"
            )
        grids, total = parts_of(layout, split and self.upstream is None), len(layout)
        if self.upstream is not None:
            if left is None:
                shares = shares_of(budget, [len(grid) for grid in grids], even=False)
                left = [self._left(g, layers, b) for g, b in zip(grids, shares, strict=True)]
            grids = tuple(left)
            grids = parts_of(Layout(grids), split and self.projector is not None)
        if self.projector is not None and self.projector.across_parts and len(grids) > 1:
            grids = (Grid(1, 1, sum(map(len, grids))),)
        kept = [len(grid) for grid in grids]
        if self.projector is not None:
            ask = None if budget is None else self._before_decoder(total, layers, budget)
            asked = shares_of(ask, kept, even=split)
            kept = [self.projector.keep_count(*one) for one in zip(grids, asked, strict=True)]
        return self._plan(grids, kept, layers, budget, parts_of(layout))

    def revised(self, plan: ImagePlan, kept: Sequence[int]) -> ImagePlan:
        """The plan of an image of which an adaptive method kept other counts, without a budget."""
        grids = [grid for grid, _ in plan.parts]
        return self._plan(grids, kept, plan.layers, None, grids)

    def _plan(
        self,
        grids: Sequence[Grid],
        kept: Sequence[int],
        layers: int,
        budget: float | None,
        whole: Sequence[Grid],
    ) -> ImagePlan:
        schedule = {}
        if self.decoder is not None:
            # Behind another method, which meets the budget, content may only take more.
            free = self.decoder.adaptive and len(self.methods) > 1
            ask = None if free else budget
            schedule = self.decoder.schedule_on(whole, layers, sum(kept), ask)
        return ImagePlan(tuple(zip(grids, kept, strict=True)), schedule, layers)

    def _before_decoder(self, tokens: int, layers: int, budget: float) -> float:
        """Tokens to ask of the methods before the decoder, so that it can do its default."""
        if self.decoder is None or not tokens:
            return budget
        if self.projector is None and self.upstream is None:
            return tokens
        default = mean_tokens(layers, tokens, self.decoder.schedule(layers, tokens, None))
        ask = budget * tokens / default
        if isinstance(self.decoder, LateEntry) and self.decoder.layer is not None:
            return round(min(ask, tokens))  # the layer is the user's, and the rest is ours
        return round(min(ask, math.sqrt(tokens * min(budget, tokens))))

    @property
    def has_threshold(self) -> bool:
        """Whether a method has a threshold, beside which there is no budget."""
        return any(
            isinstance(method, ByThreshold) and method.threshold is not None
            for method in self.methods
        )

    def check_thresholds(self, given: object) -> None:
        """Refuse a budget beside a method with a threshold.

        Args:
            given: the budget, for the message.

        Raises:
            BudgetError: there is one.
        """
        for method in self.methods:
            if isinstance(method, ByThreshold):
                method.check_budget(given)

    def _check_budget(self, budget: float) -> None:
        self.check_thresholds(f"{budget:g}")
        if not (math.isfinite(budget) and budget >= 0):
            raise BudgetError(f"a budget is a number of tokens of 0 or more, got {budget}")
        for method in self.methods:
            if not method.takes_budget:
                raise BudgetError(
                    f"{method.name} {method.summary} and takes no budget, got {budget:g}"
                )
