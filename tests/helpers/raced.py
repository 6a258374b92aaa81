"""Drawn questions without answers, candidates that nobody should take, and a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.methods import Reducer, Selector
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.tokens import Grid, Reduction, VisualTokens
from vlmcompress.tuned import FORMAT, KIND, identity
from vlmcompress.tuning.samples import TASK


def drawn(task: str, count: int, seed: int = 3) -> list[Sample]:
    """Questions of a built-in task as a user would have them: nobody knows the answers."""
    (found,) = load_tasks([task])
    medium = "video" if task == "clips" else "image"
    return [
        replace(one, task=TASK, kind=medium, wording=0, answers=(), extra=f"{one.index}.png")
        for one in found.samples(count, seed)
    ]


class Clock:
    """A minute goes by with every look at it."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        """Seconds."""
        self.looks += 1
        return 60.0 * (self.looks - 1)


@dataclass(frozen=True)
class Everything(Selector):
    """Keeps every token whatever the budget."""

    name: ClassVar[str] = "everything"
    summary: ClassVar[str] = "does nothing"

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Not what is asked for."""
        return len(grid)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """As many."""
        return torch.arange(len(tokens.features))


@dataclass(frozen=True)
class Nothing(Selector):
    """Keeps no token whatever the budget."""

    name: ClassVar[str] = "nothing"
    summary: ClassVar[str] = "drops everything"

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Not what is asked for."""
        return 0

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """As many."""
        return torch.arange(0)


@dataclass(frozen=True)
class Copier(Reducer):
    """Writes the last words that it is shown in the place of the visual tokens.

    Were it shown the answer of the whole model, as in one forward of prompt and answer, the decoder
    could read the answer there.
    """

    name: ClassVar[str] = "copier"
    summary: ClassVar[str] = "copies what it is told"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    shown: ClassVar[list[Tensor]] = []

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """The last word, again and again."""
        assert tokens.text is not None
        self.shown.append(tokens.text)
        last = tokens.text[-1:].expand(count, -1)
        groups = torch.arange(len(tokens.features)).tensor_split(count)
        return Reduction.from_groups(last, groups)


def row(method: str, agreement: Any = 0.9, **others: Any) -> dict[str, Any]:
    """A candidate, as a profile has it."""
    return {
        "method": method,
        "agreement": agreement,
        "agreement_interval": [0.85, 0.94],
        "kl": 0.1,
        "n": 320,
        **others,
    }


def found(*methods: str) -> dict[str, Any]:
    """What a profile holds for a budget, the first of some methods taken."""
    return {"rows": [row(name) for name in methods], "last": 4, "tied": [], "warnings": []}


def profile_of(model: Any, taken: Mapping[str, str]) -> dict[str, Any]:
    """A profile of a model that takes a method at each budget."""
    return {
        "kind": KIND,
        "format": FORMAT,
        "model": {"name": "tiny-llava", **identity(ModelParts.of(model))},
        "budgets": {budget: found(method) for budget, method in taken.items()},
    }
