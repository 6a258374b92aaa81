"""`method="auto"`: which methods for a model and a budget, from measured accuracies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

import vlmcompress.methods
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.budget.search import different_shares, largest_share
from vlmcompress.defaults import AUTO
from vlmcompress.errors import BudgetError, CompositionError, UnsupportedModelError
from vlmcompress.flops.exact import Costs, first_token
from vlmcompress.methods.composition.pipeline import Upstream
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.before_projector import EncoderMethod
from vlmcompress.methods.contracts.method import Stage, resolve
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.encoder.feature_call import before_projector
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.sequence.attention_masks import layer_kinds
from vlmcompress.patches.signals.availability import defined, given_by
from vlmcompress.tokens import Grid

LEAST = 1 / 8
"""Below this share of the tokens accuracy falls steeply in all tables: rather encode less."""
WORTH = 0.1
"""Share of the encoder in all FLOPs below which encoding less saves next to nothing."""
_TOWER = 1 / 5
"""The same share below which dropping inside the tower is not asked for."""
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
    inside: Callable[[str], float | None] | None = None
    """Share of the tokens at which a spec that drops inside the tower meets the budget, None where
    it cannot; None for budgets of tokens."""


@dataclass(frozen=True)
class _Candidate:
    choice: MethodChoice
    accuracy: float
    """As measured; of methods that were measured one by one the product."""


def most_accurate(inputs: ChoiceInputs, fits: Fits) -> MethodChoice:
    """The most accurate methods that fit, one before the projector only where it is needed.

    Pipelines that drop inside the tower were measured as a whole. They are taken where they were
    more often right at the share of the tokens that they meet the budget with.

    Raises:
        UnsupportedModelError: nothing fits.
    """
    found = [one for one in (_apart(inputs, fits), _inside(inputs, fits)) if one is not None]
    if not found:
        raise UnsupportedModelError(
            f"{AUTO} knows no method for the stages {', '.join(inputs.stages)} at {inputs.budget}: "
            "name one"
        )
    return max(found, key=lambda one: one.accuracy).choice


def _apart(inputs: ChoiceInputs, fits: Fits) -> _Candidate | None:
    """Methods that were measured one by one: behind the encoder, or half the way before it."""
    enough = inputs.behind is not None and inputs.behind >= LEAST
    stage = next((stage for stage in ("pixels", "encoder") if stage in inputs.stages), None)
    if not (enough or inputs.before is None or stage is None or inputs.encoder < WORTH):
        why = f"the encoder is {inputs.encoder:.0%} of the FLOPs, too much for {inputs.budget}"
        both = math.sqrt(inputs.before)  # half the way each
        found = _first([stage, "behind"], both, inputs.before, why, fits)
        if found is not None:
            return found
    share = inputs.behind or LEAST
    return _first(
        ["behind"], share, share, f"{inputs.budget} leaves {share:.0%} of the tokens", fits
    )


def _first(
    places: Sequence[str], measured: float, share: float, why: str, fits: Fits
) -> _Candidate | None:
    """The first that fits, where the figures at `measured` count."""
    nearest, lists = _figures(places, measured)
    for methods in product(*lists):
        spec = "+".join(one["method"] for one in methods)
        if fits(spec, share):
            best = ", ".join(map(_right, methods))
            choice = MethodChoice(spec, f"{why}; with {nearest} of the tokens {best}")
            return _Candidate(choice, math.prod(one["accuracy"] for one in methods))
    return None


def _inside(inputs: ChoiceInputs, fits: Fits) -> _Candidate | None:
    """The best pipeline that drops inside the tower, each at its own share of the tokens."""
    if inputs.inside is None or "encoder" not in inputs.stages or inputs.encoder <= _TOWER:
        return None
    table = _tables().get("inside", {})
    found = []
    for spec in dict.fromkeys(one["method"] for listed in table.values() for one in listed):
        share = inputs.inside(spec)
        if share is None or not fits(spec, share):
            continue
        nearest = _nearest(table, share)
        for figure in table[nearest]:
            if figure["method"] == spec:
                why = (
                    f"the encoder is {inputs.encoder:.0%} of the FLOPs, and {inputs.budget} leaves "
                    f"{share:.0%} of the tokens if some leave inside it; with {nearest} of them "
                    f"{_right(figure)}"
                )
                found.append(_Candidate(MethodChoice(spec, why), figure["accuracy"]))
    return max(found, key=lambda one: one.accuracy, default=None)


def _right(figure: Figure) -> str:
    low, high = figure["interval"]
    return (
        f"{figure['method']} is right in {figure['accuracy']:.1%} ({100 * low:.1f} to "
        f"{100 * high:.1f}) of {figure['n']} answers"
    )


def _figures(places: Sequence[str], share: float) -> tuple[str, list[Sequence[Figure]]]:
    """The measured share that is nearest, and the figures of each place there, the best first."""
    tables = _tables()
    nearest = _nearest(tables["behind"], share)
    return nearest, [tables[place][nearest] for place in places]


def _nearest(table: Iterable[str], share: float) -> str:
    return min(table, key=lambda one: abs(math.log(Budget.parse(one).amount / 100 / share)))


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
    family = parts.family
    grid = _grid_of(parts) if budget.is_cost else family.fixed_grid(parts.model)
    stages = list(family.stages)
    if grid is None and "encoder" in stages and family.encoder.tile(parts.base) is not None:
        stages.remove("encoder")  # tiles: sizes are not known before the encoder
    if "decoder" in stages and not _cuts(parts):
        stages.remove("decoder")
    grid, layers, given = grid or _PICTURE, len(parts.layers), given_by(family, parts.base)

    def fits(spec: str, share: float) -> bool:
        try:
            pipeline = parse(spec).for_stages(family.name, stages)
            if isinstance(pipeline.upstream, EncoderMethod) and family.encoder.blocks:
                return False  # what is known of merging was measured where a token is a patch
            pipeline.plan(grid, layers, max(1, round(share * len(grid))))
            before_projector(parts, Planner(pipeline, budget, layers), list)  # asks the tower
            return not resolve(pipeline.needs, defined(pipeline, parts, given))[1]
        except (BudgetError, CompositionError, UnsupportedModelError):
            return False

    if budget.is_cost:
        return most_accurate(_of_cost(parts, budget, grid, stages), fits)
    left = min(1.0, budget.amount / (100 if budget.unit == "percent" else len(grid)))
    return most_accurate(ChoiceInputs(str(budget), left, None, 0.0, stages), fits)


def _of_cost(
    parts: ModelParts, budget: Budget, grid: Grid, stages: Collection[Stage]
) -> ChoiceInputs:
    """Where the budget is a cost: of one picture of `grid` tokens, with a prompt of `_TEXT`."""
    shape, layers = shape_of(parts.model), len(parts.layers)

    def cost(plan: ImagePlan, upstream: Upstream | None = None) -> Costs:
        return first_token(shape, load_of(parts.model, [(0, grid, plan)], [_TEXT], upstream))

    def kept(keep: int) -> Costs:
        return cost(ImagePlan(((grid, keep),), {}, layers))

    full = kept(len(grid))

    def inside(spec: str) -> float | None:
        pipeline = parse(spec).for_stages(parts.family.name, stages)
        planner = Planner(pipeline, budget, layers)

        def part(share: float) -> float:
            plan = planner.at(share).plan([grid])[0]
            return cost(plan, pipeline.upstream).total / full.total

        return _TYPICAL if budget.unit == "ms" else _largest(part, budget, len(grid))

    behind = before = None
    if budget.unit == "ms":
        before = _TYPICAL
    else:
        behind, before = _shares(budget, len(grid), kept)
    return ChoiceInputs(str(budget), behind, before, full.encoder / full.total, stages, inside)


def _grid_of(parts: ModelParts) -> Grid | None:
    """Of a picture, or of a tile where tiles are told apart; None where sizes differ."""
    grid, encoder = parts.family.fixed_grid(parts.model), parts.family.encoder
    tile = encoder.tile(parts.base)
    if grid is None and tile and parts.family.tiles(torch.zeros(1, 1, 3, 1, 1)) is not None:
        side = math.isqrt(tile // encoder.patches(parts.base))
        return Grid(1, side, side)
    return grid


def _cuts(parts: ModelParts) -> bool:
    """Whether tokens may be dropped between the decoder's layers, by attention that is computed.

    Where it is captured, a cut with no attention before it would fail only in the call.
    """
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

    behind = _largest(lambda share: part(share, 1), budget, tokens)
    before = _largest(lambda share: part(share, math.sqrt(share / 100)), budget, tokens)
    return behind, before or 1 / tokens


def _largest(part: Callable[[float], float], budget: Budget, tokens: int) -> float | None:
    """The largest share of the tokens, from 0 to 1, at which a cost meets the budget."""
    try:
        return largest_share(part, different_shares([tokens]), budget, AUTO)[0] / 100
    except BudgetError:
        return None
