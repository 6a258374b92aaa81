"""FLOPs of every type whose vision side and decoder are known, against torch's own counter.

Attention is eager, so that the counter sees all of it: every query meets every key.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from clip_case import ClipCase
from model_case import Case, Inputs, case_of
from scope import CLIPS_HERE, COUNTED, CUTS, DOZEN, mended
from shortening import EverySecond
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlmcompress.api import compress
from vlmcompress.errors import BudgetError
from vlmcompress.flops.exact import Load, first_token
from vlmcompress.patches.cost.workload import load_of, shape_of

pytestmark = pytest.mark.filterwarnings("ignore::vlmcompress.errors.UntestedModelWarning")


@pytest.fixture(
    scope="module",
    params=[t if t in DOZEN else pytest.param(t, marks=pytest.mark.slow) for t in COUNTED],
)
def case(request: Any) -> Any:
    with warnings.catch_warnings(), mended(request.param):
        warnings.simplefilter("ignore")
        found = case_of(request.param)
        if hasattr(found.model, "set_experts_implementation"):
            found.model.set_experts_implementation("eager")
        yield found


def counted(case: Case, inputs: Inputs) -> tuple[float, list[float]]:
    """FLOPs of a prefill of one prompt: all of them, and of each decoder layer."""
    model: Any = case.model
    last = {} if shape_of(model).all_logits else {"logits_to_keep": 1}
    with FlopCounterMode(display=False) as counter:
        case.logits(inputs, **last)
    found = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    beyond = [overhang(layer) for layer in case.parts.layers]
    # Children of layers, since what hooks on a layer compute counts as the layer's.
    layers = [
        sum(found.get(names[part], 0) for part in layer.children()) for layer in case.parts.layers
    ]
    each = [mine - more for mine, more in zip(layers, beyond, strict=True)]
    return found["Global"] - sum(beyond), each


def overhang(layer: nn.Module) -> int:
    """FLOPs of outputs that a convolution computes behind the end, and throws away."""
    convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv1d)]
    return sum(2 * c.weight.numel() * (c.kernel_size[0] - 1) for c in convolutions)


def words(case: Case, inputs: Inputs | None = None) -> list[int]:
    """Tokens of the prompt that are no placeholders."""
    return [int(((inputs or case.single)["input_ids"] != case.token).sum())]


def agree(case: Case, load: Load, inputs: Inputs | None = None) -> None:
    """What is predicted and what torch counts, layer by layer."""
    costs = first_token(shape_of(case.model), load, causal=False)
    total, layers = counted(case, inputs or case.single)
    assert list(costs.prefill) == layers
    assert costs.total == total


def whole(case: Case, inputs: Inputs | None = None) -> Sequence[Any]:
    """The pictures of the prompt with all their tokens."""
    with compress(case.model, "full") as c:
        case.logits(inputs or case.single)
        return [(image.row, image.layout, None) for image in c._engine.trace.images]


@pytest.mark.parametrize("number", [0, 1], ids=["square", "wide"])
def test_a_bare_call(case, number):
    inputs = case.alone[number]
    agree(case, load_of(case.model, whole(case, inputs), words(case, inputs)), inputs)


@pytest.mark.parametrize("method", ["random", "cut"])
def test_a_call_with_a_method_that_multiplies_nothing(case, method):
    if method == "cut" and case.model_type not in CUTS:
        pytest.skip("projector stage only")
    cut = method == "cut"
    chosen: Any = EverySecond(k=case.first_cut, ratio=0.5) if cut else method
    with compress(case.model, chosen, budget=None if cut else "50%") as c:
        case.logits(case.single)
        report = c.report()
        assert report.engaged
        load = load_of(case.model, report.images, words(case))
        agree(case, load)
    bare = load_of(case.model, whole(case), words(case))
    shape = shape_of(case.model)
    assert first_token(shape, load).total < first_token(shape, bare).total


def test_a_budget_of_flops_is_met(case):
    shape, pictures = shape_of(case.model), whole(case)
    full = first_token(shape, load_of(case.model, pictures, words(case))).total
    with (
        compress(case.model, "random", budget="0.01 flops"),
        pytest.raises(BudgetError, match="flops"),
    ):
        case.logits(case.single)
    one = next(len(layout) for _, layout, _ in pictures)

    def share(tokens: int) -> float:
        with compress(case.model, "random", budget=tokens) as c:
            case.logits(case.single)
            return (
                first_token(shape, load_of(case.model, c.report().images, words(case))).total / full
            )

    middle = (share(1) + share(one - 1)) / 2
    with compress(case.model, "random", budget=f"{middle} flops") as c:
        case.logits(case.single)
        kept = c.report().images[0].after
    assert 1 <= kept < one - 1
    assert share(kept) <= middle < share(kept + 1)


@pytest.mark.parametrize("method", [None, "random", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        name if name in DOZEN else pytest.param(name, marks=pytest.mark.slow)
        for name in COUNTED
        if name in CLIPS_HERE
    ],
)
def test_a_call_with_a_clip(name, method):
    case = ClipCase(name)
    if hasattr(case.model, "set_experts_implementation"):
        case.model.set_experts_implementation("eager")
    if method is None:
        agree(case, load_of(case.model, whole(case), words(case)))
        return
    cut = method == "cut"
    chosen: Any = EverySecond(k=case.first_cut, ratio=0.5) if cut else method
    with compress(case.model, chosen, budget=None if cut else "50%") as c:
        case.logits(case.single)
        agree(case, load_of(case.model, c.report().images, words(case)))
