"""A budget that is a cost, as a share of tokens: once per prefill, when the prompt is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlmcompress.budget import Planner, different_shares, largest_share
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.flops import Costs, Load, first_token
from vlmcompress.methods.pipeline import ImagePlan
from vlmcompress.patches.costs import load_of, shape_of
from vlmcompress.patches.family import Family
from vlmcompress.patches.guard import two_dimensional
from vlmcompress.patches.spans import Located, locate
from vlmcompress.timing import decoder_times, median_of, memory_of, predicted
from vlmcompress.tokens import Grid, Layout

if TYPE_CHECKING:
    from vlmcompress.patches.engine import Engine
    from vlmcompress.patches.reduce import Reducing
    from vlmcompress.patches.trace import ImageTrace, Trace


@dataclass(frozen=True)
class Prompt:
    """What a prefill is made of."""

    images: Sequence[Located]
    text: Sequence[int]
    """Per row of the batch its tokens that are no placeholders; padding is none."""
    left: Sequence[Sequence[Grid] | None]
    """Per image what a method before the projector left of each grid; None where unknown."""

    @classmethod
    def of(
        cls,
        ids: Tensor,
        valid: Tensor | None,
        images: Sequence[Located],
        left: Sequence[Sequence[Grid] | None] | None = None,
    ) -> Prompt:
        """Count the text of `ids` [B, L], of which `valid` [B, L] is no padding."""
        batch, length = ids.shape
        text = [length] * batch if valid is None else valid.sum(1).tolist()
        for image in images:
            text[image.row] -= len(image.placeholders)
        return cls(images, text, [None] * len(images) if left is None else left)


@dataclass
class Solved:
    """A budget of one call and what became of it."""

    prompt: Prompt
    planner: Planner
    """For a share of the tokens."""
    share: float
    """In percent."""
    predicted: float
    """In the unit of the budget, like `measured`."""
    measured: float | None = None
    images: list[ImageTrace] = field(default_factory=list)
    """What was done with the images of the prompt."""


class Solver:
    """Finds the largest share of the tokens of a prompt that meets a cost."""

    def __init__(self, model: nn.Module, family: Family, planner: Planner) -> None:
        self._model, self._family, self._planner = model, family, planner
        self._shape = shape_of(model)

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
        layouts = [image.layout for image in prompt.images]
        full = self._load(prompt, [None] * len(layouts))
        costs = self._times(prompt, full, encoder) if self.by_time else self._shares(full)

        def cost(share: float) -> float:
            return costs(self._load(prompt, planner.at(share)(layouts, prompt.left)))

        shares = different_shares([len(layout) for layout in layouts])
        share, figure = largest_share(cost, shares, budget, planner.pipeline.name)
        return Solved(prompt, planner.at(share), share, figure)

    def measure(self, solved: Solved, trace: Trace) -> None:
        """What the prefill that has just run really cost; times are read when they are needed."""
        if self.by_time:
            if solved.share < 100:
                key = self._selection(solved.prompt)
                memory_of(self._model).last = key, lambda: trace.milliseconds()["selection"]
            return
        plans = [image.really for image in solved.images]
        full = self._load(solved.prompt, [None] * len(plans))
        solved.measured = self._shares(full)(self._load(solved.prompt, plans))

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
        lm = self._family.language_model(self._family.base(self._model))
        decoder = decoder_times(self._model, lm, len(full.rows), max(full.rows[0]))
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


def planner_of(prefill: Reducing) -> Planner:
    """The planner of a prefill, whose budget is no cost any more."""
    engine = prefill.engine
    if engine.solver is None:
        return engine.planner
    now, device = engine.now, prefill.embeds.device
    if now.solved is None:
        valid, left = prefill.valid, [None if one is None else one.grids for one in prefill.left]
        prompt = Prompt.of(prefill.ids, valid, prefill.images, left)
        with engine.trace.timed("calibration", device), now.aside():
            now.solved = engine.solver.solve(prompt, lambda: engine.trace.milliseconds()["encoder"])
    engine.trace.solved = now.solved
    return now.solved.planner


def planner_ahead(engine: Engine, call: Mapping[str, Any], run: Callable[[], Any]) -> Planner:
    """The planner of a prompt that is about to be encoded.

    Args:
        engine: with a method before the projector.
        call: arguments of the feature call.
        run: the bare feature call.

    Raises:
        UnsupportedCallError: the prompt is not known, as features are encoded by themselves.
        BudgetError: the size of the images is not known yet, or the budget cannot be met.
    """
    if engine.solver is None:
        return engine.planner
    now = engine.now
    if now.solved is None:
        device = next(engine.base.parameters()).device

        def encoder() -> float:
            known = memory_of(engine.model).encoder
            key = tuple(tuple(v.shape) for v in call.values() if isinstance(v, Tensor))
            if key not in known:
                known[key] = median_of(run, device, runs=1)
            return known[key]

        prompt = _prompt_ahead(engine)
        with now.aside():
            now.solved = engine.solver.solve(prompt, encoder)
    return now.solved.planner


def _prompt_ahead(engine: Engine) -> Prompt:
    """The prompt of the call that this thread is in, from its arguments alone."""
    given, chunk = engine.now.call or engine.now.given or {}, engine.now.call is not None
    ids, cache = given.get("input_ids"), given.get("past_key_values")
    if not isinstance(ids, Tensor):
        raise UnsupportedCallError(
            f"budget {engine.planner.budget} takes {engine.planner.pipeline.name} to know the "
            "prompt before it is encoded: give pixels to the model together with input_ids"
        )
    if cache is not None and not chunk:  # `generate` is given earlier turns once more
        ids = ids[:, int(cache.get_seq_length()) :]
    assert engine.upstream is not None
    family = engine.family
    layouts: dict[str, Sequence[Layout]] = {}
    for modality, name in family.feature_calls.items():
        names = inspect.signature(getattr(engine.base, name)).parameters
        call = {name: given[name] for name in names if given.get(name) is not None}
        if any(name.startswith("pixel_values") for name in call):
            layouts[modality] = engine.upstream.layouts(modality, call)
    images = locate(ids, family.placeholders(engine.model), layouts, family.continues)
    mask = two_dimensional(given.get("attention_mask"))
    return Prompt.of(ids, None if mask is None else mask[:, -ids.shape[1] :].bool(), images)
