"""`method="auto"`: which methods for a model and a budget, from measured accuracies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import vlmcompress.methods
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.search import different_shares, largest_share
from vlmcompress.defaults import AUTO
from vlmcompress.errors import BudgetError, CompositionError, UnsupportedModelError
from vlmcompress.flops.exact import Costs, first_token
from vlmcompress.methods.composition.pipeline import ImagePlan
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.method import Stage, resolve
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.sequence.attention_masks import layer_kinds
from vlmcompress.patches.signals.availability import defined, given_by
from vlmcompress.tokens import Grid

LEAST = 1 / 8
"""Below this share of the tokens accuracy falls steeply in all tables: rather encode less."""
WORTH = 0.1
"""Share of the encoder in all FLOPs below which encoding less saves next to nothing."""
_TYPICAL = 1 / 4
"""Share of the tokens taken for a time, of which nothing is known before a call."""
_PICTURE, _TEXT = Grid(1, 24, 24), 32
"""What is asked about where the family has no grid of its own, and the length of the prompt."""

Figure = Mapping[str, Any]
"""How often a method is right: "method", "accuracy", "interval" of 95 %, and "n" answers."""
Fits = Callable[[str, float], bool]
"""Called with a method spec and a share of the tokens: whether the model can run it there."""


@dataclass(frozen=True)
class MethodChoice:
    """What "auto" takes."""

    spec: str
    reason: str


@dataclass(frozen=True)
class ChoiceInputs:
    """What the choice depends on."""

    budget: str
    behind: float | None
    """Share of the tokens that the budget keeps where all patches are encoded; None where it cannot
    be met so, or that is not known."""
    before: float | None
    """Share of the tokens where a method before the projector lets less be encoded, too; None for
    budgets of tokens, which no encoder changes."""
    encoder: float
    """Share of the encoder in the FLOPs up to the first token of a typical prompt."""
    stages: Collection[Stage]


def most_accurate(inputs: ChoiceInputs, fits: Fits) -> MethodChoice:
    """The most accurate methods that fit, one before the projector only where it is needed.

    Raises:
        UnsupportedModelError: nothing fits.
    """
    enough = inputs.behind is not None and inputs.behind >= LEAST
    stage = next((stage for stage in ("pixels", "encoder") if stage in inputs.stages), None)
    if enough or inputs.before is None or stage is None or inputs.encoder < WORTH:
        share = measured = inputs.behind or LEAST
        why = f"{inputs.budget} leaves {share:.0%} of the tokens"
        places = ["behind"]
    else:
        share, measured = inputs.before, math.sqrt(inputs.before)  # half the way each
        why = f"the encoder is {inputs.encoder:.0%} of the FLOPs, too much for {inputs.budget}"
        places = [stage, "behind"]
    nearest, lists = _figures(places, measured)
    for methods in product(*lists):
        spec = "+".join(one["method"] for one in methods)
        if fits(spec, share):
            best = ", ".join(map(_right, methods))
            return MethodChoice(spec, f"{why}; with {nearest} of the tokens {best}")
    raise UnsupportedModelError(
        f"{AUTO} knows no method for the stages {', '.join(inputs.stages)} at {inputs.budget}: "
        "name one"
    )


def _right(figure: Figure) -> str:
    low, high = figure["interval"]
    return (
        f"{figure['method']} is right in {figure['accuracy']:.1%} ({100 * low:.1f} to "
        f"{100 * high:.1f}) of {figure['n']} answers"
    )


def _figures(places: Sequence[str], share: float) -> tuple[str, list[Sequence[Figure]]]:
    """The measured share that is nearest, and the figures of each place there, the best first."""
    tables = _tables()
    nearest = min(
        tables["behind"], key=lambda one: abs(math.log(Budget.parse(one).amount / 100 / share))
    )
    return nearest, [tables[place][nearest] for place in places]


@cache
def _tables() -> dict[str, Any]:
    """See `dev.pages.auto_table`, which makes the file."""
    file = Path(vlmcompress.methods.__file__).parent / "data" / "auto.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def auto_method(parts: ModelParts, budget: Budget | None) -> MethodChoice:
    """What to take for a model and a budget.

    Raises:
        BudgetError: there is no budget.
        UnsupportedModelError: nothing fits.
    """
    if budget is None:
        raise BudgetError(f'{AUTO} needs a budget, for example "25%", "0.4 flops" or "120 ms"')
    model, family = parts.model, parts.family
    grid, stages = family.fixed_grid(model), list(family.stages)
    if grid is None and "encoder" in stages:
        stages.remove("encoder")  # tiles: sizes are not known before the encoder
    if "decoder" in stages and not _cuts(parts):
        stages.remove("decoder")
    grid, layers, given = grid or _PICTURE, len(parts.layers), given_by(family, parts.base)

    def fits(spec: str, share: float) -> bool:
        try:
            pipeline = parse(spec).for_stages(family.name, stages, family.merges)
            pipeline.plan(grid, layers, max(1, round(share * len(grid))))
            return not resolve(pipeline.needs, defined(pipeline, given))[1]
        except (BudgetError, CompositionError):
            return False

    if not budget.is_cost:
        left = min(1.0, budget.amount / (100 if budget.unit == "percent" else len(grid)))
        return most_accurate(ChoiceInputs(str(budget), left, None, 0.0, stages), fits)
    shape = shape_of(model)

    def cost(keep: int) -> Costs:
        plan = ImagePlan(((grid, keep),), {}, layers)
        return first_token(shape, load_of(model, [(0, grid, plan)], [_TEXT]))

    full = cost(len(grid))
    behind = before = None
    if budget.unit == "ms":
        before = _TYPICAL
    else:
        behind, before = _shares(budget, len(grid), cost)
    return most_accurate(
        ChoiceInputs(str(budget), behind, before, full.encoder / full.total, stages), fits
    )


def _cuts(parts: ModelParts) -> bool:
    """Whether tokens may be dropped between the decoder's layers, by their attention."""
    if parts.family.no_scores is not None:
        return False
    try:
        kinds = layer_kinds(parts.lm, len(parts.layers), parts.family.masks_in_base)
        kinds.check_cuts()
    except UnsupportedModelError:
        return False
    return True


def _shares(
    budget: Budget, tokens: int, cost: Callable[[int], Costs]
) -> tuple[float | None, float]:
    """See `ChoiceInputs.behind` and `ChoiceInputs.before`.

    `cost` gives the FLOPs of a picture by how many of its tokens enter the decoder.
    """
    full = cost(tokens)

    def part(share: float, encoded: float) -> float:
        costs = cost(round(share / 100 * tokens))
        saved = (1 - encoded) * (costs.encoder + costs.projector)
        return (costs.total - saved) / full.total

    def largest(part: Callable[[float], float]) -> float | None:
        try:
            return largest_share(part, different_shares([tokens]), budget, AUTO)[0] / 100
        except BudgetError:
            return None

    behind = largest(lambda share: part(share, 1))
    before = largest(lambda share: part(share, math.sqrt(share / 100)))
    return behind, before or 1 / tokens
