"""What is kept of one image, by count: known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from vlmcompress.methods.contracts.decoder import mean_tokens, tokens_per_layer
from vlmcompress.tokens import Grid


@dataclass(frozen=True)
class ImagePlan:
    """How many visual tokens of one image or clip are kept, and where; known before the run."""

    parts: tuple[tuple[Grid, int], ...]
    """The grids that the projector method is given one by one, and the tokens it keeps of each."""
    schedule: dict[int, int]
    """Decoder layer -> tokens that enter it and all later ones; empty without a decoder method."""
    layers: int
    """Decoder layers."""

    @property
    def given(self) -> int:
        """Tokens that the projector method is given: all, or what an upstream method left."""
        return sum(len(grid) for grid, _ in self.parts)

    @property
    def keep(self) -> int:
        """Tokens that enter the decoder."""
        return sum(kept for _, kept in self.parts)

    @property
    def late(self) -> bool:
        """Whether the tokens enter the decoder after its first layer."""
        return 0 in self.schedule

    @property
    def per_layer(self) -> list[int]:
        """Tokens that enter each decoder layer."""
        return tokens_per_layer(self.layers, self.keep, self.schedule)

    @property
    def mean(self) -> float:
        """True mean over decoder layers: what a budget is about."""
        return mean_tokens(self.layers, self.keep, self.schedule)
