"""ZOO-Prune: the tokens to whose change the projector reacts most, and that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.ops.sensitivity import Probe, sensitivity, weighted_farthest_point
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import Grid, VisualTokens

# Differences in reaction below this share of the largest are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ZooPrune(Selector):
    """Keep the tokens with the largest sensitivity times distance, greedily.

    The sensitivity of a token is the mean reaction of the projector to small moves of its input
    along random directions, scaled to [0, 1]; the distance, 1 - cosine of projected features, is
    that to the nearest token picked before. Official code: AIM-SKKU/ZOO-Prune.

    Deviations:
        Directions come from a seed; the official code draws them anew at each call.
        The projector is probed in float32: half precision cannot resolve the moves.
        Where several patches become one token (Qwen, InternVL), all move alike: ours.
        A part that reacts the same everywhere, but for rounding, has the sensitivity 1 everywhere.
        Picked tokens are masked.
        `probe`: the exact derivative, and "expected", are ours; see `sensitivity`. "expected" is
        what the mean of ever more directions comes to, but for the order of root and mean; it is
        not to be had where each patch of a token is normalised by itself (the merger of Qwen).
    """

    name: ClassVar[str] = "zoo-prune"
    paper: ClassVar[str] = "arXiv 2509.24837"
    summary: ClassVar[str] = "keeps what the projector reacts to, spread out"
    needs: ClassVar[frozenset[str]] = frozenset({"projection"})

    ratio: float = 0.1112
    """Share kept when no budget is given; in (0, 1]. 64 of the 576 tokens of LLaVA-1.5."""
    directions: int = 64
    """Random moves; m in the paper. Not for "expected"."""
    step: float = 0.01
    """Length of a move; h in the paper. Only for differences."""
    probe: Probe = "difference"
    """How the reaction is measured."""
    seed: int = 0
    """Seed of the random directions; 0 or more."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", directions="(0, inf)", step="(0, inf)", seed="[0, inf)")

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """int(ratio * N) without a budget, at least 1."""
        if budget is None:
            return max(1, int(self.ratio * len(grid)))
        return super().keep_count(grid, budget)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        return weighted_farthest_point(tokens.features, self._weights(tokens), count)[:count]

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, in the order in which they were picked."""
        weights = self._weights(tokens)
        return weighted_farthest_point(tokens.features, weights, count, order="picked")[:count]

    def _weights(self, tokens: VisualTokens) -> Tensor:
        """[N] sensitivity in [0, 1]."""
        projection = tokens.projection
        if projection is None:
            raise VLMCompressError(f"{self.name} needs the projection of the tokens, got none")
        reaction = projection.to_tokens(
            sensitivity(
                projection.body,
                projection.last,
                projection.inputs,
                self._directions(projection.inputs),
                step=self.step,
                probe=self.probe,
            )
        ).to(tokens.features.device)
        low, high = reaction.min(), reaction.max()
        scaled = (reaction - low) / (high - low + 1e-8)
        return torch.where(high - low <= _ROUNDING * high, 1.0, scaled)

    def _directions(self, inputs: Tensor) -> Tensor:
        """[m, D] of length 1, the same for all tokens."""
        generator = torch.Generator().manual_seed(self.seed % 2**32)
        return unit_rows(torch.randn(self.directions, inputs.shape[-1], generator=generator))
