"""Small methods that act before the projector, and what their laws compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    Merge,
    PixelSelector,
    Resizer,
    TokenPatches,
    TowerDropper,
)
from vlmcompress.tokens import Grid


@dataclass(frozen=True)
class Huddle(EncoderMethod):
    """Those that receive least attention join the one that receives most, in two rounds."""

    name: ClassVar[str] = "huddle"
    summary: ClassVar[str] = "merges"
    proportional: bool = True  # type: ignore[assignment]

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        return {0: (tokens + keep) // 2} | {layers - 1: keep} if layers > 1 else {0: keep}

    def merge(self, view: Any, count: int) -> Merge:
        score = view.received() + 0.01 * view.keys().norm(dim=-1)
        score[:, : view.protected] = float("inf")
        order = score.argsort(dim=1)
        drop = score.shape[1] - view.protected - count
        best = order[:, -1 - view.protected]
        leader = torch.arange(score.shape[1], device=score.device).expand(score.shape).clone()
        leader.scatter_(1, order[:, :drop], best[:, None].expand(-1, drop))
        return Merge(leader, view.sizes + view.hidden.float().norm(dim=-1))


@dataclass(frozen=True)
class Shrink(Resizer):
    """The largest square grids, or a given one."""

    name: ClassVar[str] = "shrink"
    summary: ClassVar[str] = "shrinks"
    to: tuple[int, int] | None = None

    def shape(self, grid: Grid, budget: float | None) -> Grid:
        if budget is not None and budget >= len(grid):
            return grid
        side = int(((budget or 1) / grid.t) ** 0.5)
        h, w = self.to or (side, side)
        return Grid(grid.t, min(h, grid.h), min(w, grid.w))


@dataclass(frozen=True)
class Bright(PixelSelector):
    """The brightest blocks, or given ones."""

    name: ClassVar[str] = "bright"
    summary: ClassVar[str] = "drops"
    adaptive: ClassVar[bool] = True
    only: tuple[int, ...] = ()

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        return len(grid) if budget is None else super().keep_count(grid, budget)

    def select(self, tokens: Any, count: int, exact: bool) -> torch.Tensor:
        if not exact:
            return torch.tensor(self.only, dtype=torch.int64, device=tokens.pixels.device)
        return tokens.pixels.sum(1).argsort(descending=True)[:count].sort().values


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


def remember(subject: Any, inputs: dict[str, torch.Tensor], monkeypatch: Any) -> Any:
    """Let the oracle take the features of the compressed model: copies and all."""
    found = subject.encode(inputs)
    monkeypatch.setattr(subject, "encode", lambda given: found)
    return found
