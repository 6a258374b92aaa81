"""The vectors of one page, and which tokens they are of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmcompress.tokens import Layout

TEXT = -1
"""The place of a token of the prompt."""


@dataclass(frozen=True)
class PageVectors:
    """What a model made of one page or query."""

    vectors: Tensor
    """[n, d], in the order of the tokens."""
    places: Tensor
    """[n] int64: the raster index of each visual token in `layout`, `TEXT` of the others."""
    layout: Layout
    """The grids of the page: one, or several tiles."""

    @property
    def visual(self) -> PageVectors:
        """The visual tokens alone."""
        kept = self.places != TEXT
        return PageVectors(self.vectors[kept], self.places[kept], self.layout)

    def cells(self) -> Tensor:
        """[m, 3] int64 of the visual tokens: tile (or frame), row and column in it."""
        rows = [
            torch.cartesian_prod(
                torch.arange(grid.t) + before, *map(torch.arange, (grid.h, grid.w))
            )
            for grid, before in zip(self.layout.parts, self._tiles(), strict=False)
        ]
        every = torch.cat(rows) if rows else torch.zeros(0, 3, dtype=torch.long)
        found: Tensor = every.to(self.places.device)[self.places[self.places != TEXT]]
        return found

    def _tiles(self) -> list[int]:
        counts = torch.tensor([0, *(grid.t for grid in self.layout.parts)])
        return [int(count) for count in counts.cumsum(0)]

    def means(self, groups: Tensor) -> Tensor:
        """Unit vectors in the direction of the mean of each group of visual tokens.

        Args:
            groups: [G, m] bool; empty ones give nothing.

        Returns:
            [up to G, d], in the dtype of the vectors.
        """
        groups = groups[groups.any(1)]
        vectors = self.vectors[self.places != TEXT]
        sums = groups.float() @ vectors.float()
        return normalize(sums, dim=-1).to(vectors.dtype)

    @property
    def words(self) -> Tensor:
        """[n - m, d]: the vectors of the other tokens."""
        return self.vectors[self.places == TEXT]
