"""What is compared: methods at budgets, with the baselines that every run carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlmcompress.budget.budget import Budget
from vlmcompress.defaults import AUTO
from vlmcompress.errors import VLMCompressError
from vlmcompress.methods import Method
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.registry import METHODS

FULL, TEXT_ONLY, ONE_FRAME = "full", "text-only", "one frame"
RANDOM = tuple(f"random(seed={seed})" for seed in range(3))
BASELINES = (*RANDOM, "stride", "pool", "downsample", "fastv")
"""Run at every budget, whatever is asked for (DESIGN §7), beside `full` and `text-only`."""
ALL = "all"


@dataclass(frozen=True)
class Case:
    """One way to run a model.

    Attributes:
        method: a spec such as "divprune+fastv(k=3)"; "one frame" is `full` on clips that repeat
            their middle frame.
        budget: as `Budget.parse` takes it; None for what needs none and for a method's own setting.
    """

    method: str
    budget: str | None

    def __str__(self) -> str:
        return self.method if self.budget is None else f"{self.method} at {self.budget}"


def cases(methods: Iterable[str], budgets: Sequence[str], video: bool) -> list[Case]:
    """`full` and the other baselines, then `methods` at `budgets`, each once.

    Args:
        methods: specs; "all" stands for every registered method.
        budgets: for example "25%" or "64".
        video: whether clips are asked about; then "one frame" is among them.

    Raises:
        VLMCompressError: an unknown or malformed method or budget, or no budget at all.
    """
    if not budgets:
        raise VLMCompressError("no budget is given: for example --budgets 50%,25%,12.5%")
    for budget in budgets:
        Budget.parse(budget)
    probes = [Case(FULL, None), Case(TEXT_ONLY, None), *([Case(ONE_FRAME, None)] if video else [])]
    asked = [case for method in (*BASELINES, *methods) for case in _of(method, budgets)]
    return list(dict.fromkeys([*probes, *asked]))


def _of(method: str, budgets: Sequence[str]) -> list[Case]:
    """What one of the methods asked for stands for."""
    if method == ALL:
        return [case for name, _ in METHODS.items() for case in _registered(name, budgets)]
    if method in (FULL, TEXT_ONLY):
        return []  # probes
    if method == "random":
        return [case for seed in RANDOM for case in _of(seed, budgets)]
    if method == AUTO:
        return [Case(method, budget) for budget in budgets]
    pipeline = parse(method)
    if pipeline.has_threshold:
        return [Case(method, None)]
    return _at(method, [type(part) for part in pipeline.methods], budgets)


def _registered(name: str, budgets: Sequence[str]) -> list[Case]:
    """Also of a method that has to be told something about the model: the run then shows what."""
    try:
        return _of(name, budgets)
    except VLMCompressError:
        return _at(name, [METHODS.get(name)], budgets)


def _at(spec: str, parts: Sequence[type[Method]], budgets: Sequence[str]) -> list[Case]:
    """At every budget; what chooses its count by itself at its own setting as well."""
    takes = any(part.takes_budget for part in parts)
    own = len(parts) == 1 and (not takes or parts[0].adaptive)
    return [
        Case(spec, budget) for budget in [*(budgets if takes else []), *([None] if own else [])]
    ]
