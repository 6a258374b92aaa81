"""A budget that is a cost, as a share of tokens: once per prefill, when the prompt is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vlmcompress.budget.latency_model import decoder_times, memory_of, predicted
from vlmcompress.budget.planner import Planner
from vlmcompress.budget.search import different_shares, largest_share
from vlmcompress.flops.exact import Costs, Load, first_token
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.ops.proving.decision import spent
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.sequence.call_trace import Solved, Trace
from vlmcompress.patches.sequence.placeholders import Located, Prompt
from vlmcompress.tokens import Layout


class Solver:
    """Finds the largest share of the tokens of a prompt that meets a cost."""

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        self._model, self._lm, self._planner = parts.model, parts.lm, planner
        self._shape = shape_of(parts.model)

    @property
    def by_time(self) -> bool:
        """Whether the budget is a time."""
        return self._planner.budget is not None and self._planner.budget.unit == "ms"

    def solve(self, prompt: Prompt, encoder: Callable[[], float]) -> Solved:
        """The share for a prompt.

        Args:
            prompt: the whole of it.
            encoder: measures the time of encoder and projector without reduction, in milliseconds.

        Raises:
            BudgetError: no share is cheap enough; says what the smallest costs.
        """
        budget, planner = self._planner.budget, self._planner
        assert budget is not None
        layouts = [self._layout(image) for image in prompt.images]
        full = self._load(prompt, self._whole(prompt))
        costs = self._times(prompt, full, encoder) if self.by_time else self._shares(full)

        def cost(share: float) -> float:
            return costs(self._load(prompt, planner.at(share).plan(layouts, prompt.survivors)))

        shares = different_shares([len(layout) for layout in layouts])
        share, figure = largest_share(cost, shares, budget, planner.pipeline.name)
        return Solved(prompt, planner.at(share), share, figure)

    def measure(self, solved: Solved, trace: Trace) -> None:
        """What the prefill that has just run really cost; times are read when they are needed."""
        if self.by_time:
            if solved.share < 100:
                key = self._selection(solved.prompt)
                # Kernels that were judged meanwhile are judged once, and not by every call.
                judged = spent() - solved.judged
                memory_of(self._model).last = (
                    key,
                    lambda: max(0.0, trace.milliseconds()["selection"] - judged),
                )
            return
        plans = [image.executed_plan for image in solved.images]
        full = self._load(solved.prompt, self._whole(solved.prompt))
        solved.measured = self._shares(full)(self._load(solved.prompt, plans))

    def _layout(self, image: Located) -> Layout:
        """What the budget of an image is about.

        The encoder knows of no mask: with a method before the projector the whole image is.
        """
        return image.layout if self._planner.pipeline.upstream else image.open_layout

    def _whole(self, prompt: Prompt) -> list[ImagePlan | None]:
        """Per image the plan that keeps all of it: none, but where some of it is masked."""
        layers = self._planner.layers
        masked = [self._layout(image) is not image.layout for image in prompt.images]
        kept = [[(g, len(g)) for g in self._layout(image).parts] for image in prompt.images]
        plans = [ImagePlan(tuple(parts), {}, layers) for parts in kept]
        return [plan if m else None for m, plan in zip(masked, plans, strict=True)]

    def _load(self, prompt: Prompt, plans: Sequence[ImagePlan | None]) -> Load:
        """Rows are padded to the longest, as the model computes them."""
        upstream = self._planner.pipeline.upstream
        images = [
            (image.row, image.layout, plan)
            for image, plan in zip(prompt.images, plans, strict=True)
        ]
        load = load_of(self._model, images, prompt.text, upstream)
        # Rows that repeat a prompt share what was encoded.
        once = {image.pieces: one for image, one in zip(prompt.images, images, strict=True)}
        if len(once) < len(images):
            encoded = load_of(self._model, list(once.values()), prompt.text, upstream)
            load = replace(encoded, rows=load.rows)
        return load.padded

    def _shares(self, full: Load) -> Callable[[Load], float]:
        """Cost as a share of the FLOPs of `full`."""
        whole = self._cost(full).total
        return lambda load: self._cost(load).total / whole

    def _times(
        self, prompt: Prompt, full: Load, encoder: Callable[[], float]
    ) -> Callable[[Load], float]:
        """Cost in milliseconds on this machine."""
        decoder = decoder_times(self._model, self._lm, len(full.rows), max(full.rows[0]))
        selecting = memory_of(self._model).selected(self._selection(prompt))
        whole, encoding = self._cost(full), encoder()

        def cost(load: Load) -> float:
            selection = 0.0 if load == full else selecting
            return predicted(self._cost(load), whole, load.rows, encoding, selection, decoder)

        return cost

    def _cost(self, load: Load) -> Costs:
        return first_token(self._shape, load)

    def _selection(self, prompt: Prompt) -> tuple[str, ...]:
        """What the time of a selection depends on."""
        return repr(self._planner.pipeline), *(str(image.layout) for image in prompt.images)
