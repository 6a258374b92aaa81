"""A method that drops patches between the layers of a tower, whatever they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlmcompress.methods.contracts.before_projector import TokenPatches, TowerDropper


@dataclass(frozen=True)
class Given(TowerDropper):
    """Keeps what a seed says of each size of grid, before a given layer."""

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "drops"
    layer: int = 0
    seed: int = 0

    def before(self, depth: int) -> int:
        return self.layer

    def select(self, tokens: TokenPatches, count: int) -> torch.Tensor:
        return picks(self.seed, len(tokens.hidden), len(tokens.grid), count)


def picks(seed: int, rows: int, total: int, count: int) -> torch.Tensor:
    """[rows, count] ascending: other ones for each row."""
    g = torch.Generator().manual_seed(seed + total)
    order = [torch.randperm(total, generator=g)[:count].sort().values for _ in range(rows)]
    return torch.stack(order)
