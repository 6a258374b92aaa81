"""The two ends of every comparison: all visual tokens, and none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.tokens import Grid, VisualTokens


@dataclass(frozen=True)
class Full(Selector):
    """All visual tokens: what every other method is measured against."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "keeps all visual tokens"
    takes_budget: ClassVar[bool] = False

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """All of them, whatever the budget."""
        return len(grid)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[N] int64: every index."""
        return torch.arange(len(tokens.grid), device=tokens.features.device)


@dataclass(frozen=True)
class TextOnly(Selector):
    """No visual token: the score of a blind model, and the time `T_0` of a free selection."""

    name: ClassVar[str] = "text-only"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "drops all visual tokens"
    takes_budget: ClassVar[bool] = False

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """None of them, whatever the budget."""
        return 0

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[0] int64."""
        return torch.empty(0, dtype=torch.long, device=tokens.features.device)
