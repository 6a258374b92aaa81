"""Methods between decoder layers, and what a schedule of theirs comes to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.method import Method, Stage
from vlmcompress.ops.select import top_k
from vlmcompress.tokens import Grid, Reduction


@dataclass(frozen=True)
class InDecoder(Method):
    """Acts before some decoder layers: a `DecoderMethod` drops there, a `DecoderReducer` merges, a
    `LateEntry` lets tokens in."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"decoder"})
    watches: ClassVar[bool] = False
    """Whether it asks for `LayerView.activations`, which are then remembered."""

    @abstractmethod
    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """Decoder layer -> number of the image's tokens that enter it and all later ones.

        Layers are 0-based, ascending and at least 1 (before layer 0 is the projector stage).

        Raises:
            BudgetError: the mean over layers cannot meet the budget; says the smallest possible.
        """

    def schedule_on(
        self, grids: Sequence[Grid], layers: int, tokens: int, budget: float | None
    ) -> dict[int, int]:
        """The same, for methods whose numbers depend on the grids of the whole image, too."""
        return self.schedule(layers, tokens, budget)


@dataclass(frozen=True)
class DecoderMethod(InDecoder):
    """Drops tokens before some decoder layers."""

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """[V] one score per surviving visual token of the image; higher is kept."""

    def keep(self, view: LayerView, count: int) -> Tensor:
        """Places among the V surviving tokens, ascending int64, that stay from `view.layer` on.

        The `count` best by `score`; adaptive methods may keep fewer. Called at every layer of the
        schedule, also where `count` is 0 or all.
        """
        alive = len(view.visual)
        if 0 < count < alive:
            return top_k(self.score(view), count)
        return torch.arange(min(count, alive), device=view.visual.device)


@dataclass(frozen=True)
class DecoderReducer(InDecoder):
    """Merges tokens before some decoder layers: a group goes on as one hidden state.

    It stands at the place, and has the position, of its smallest member. What the layers before
    have cached stays as it is.
    """

    @abstractmethod
    def merge(self, hidden: Tensor, grids: Sequence[Grid], count: int) -> Reduction:
        """`count` hidden states in place of V.

        Args:
            hidden: [V, D] of the image's tokens that are left, about to enter the layer.
            grids: those that all its tokens lay on at first.
            count: of the schedule, below V.

        Returns:
            New states, and groups of places among the V.
        """


@dataclass(frozen=True)
class LateEntry(InDecoder):
    """Lets tokens in before a later layer, as the projector made them: {} or {0: 0, layer: all}."""

    layer: int | None = None
    """That layer, 0-based; None where a budget decides, or the middle of the decoder."""


def tokens_per_layer(layers: int, tokens: int, schedule: Mapping[int, int]) -> list[int]:
    """Tokens that enter each of `layers` decoder layers, when `tokens` enter the first."""
    counts, current = [], tokens
    for layer in range(layers):
        current = schedule.get(layer, current)
        counts.append(current)
    return counts


def mean_tokens(layers: int, tokens: int, schedule: Mapping[int, int]) -> float:
    """True mean over `layers` decoder layers of the tokens that enter each."""
    return sum(tokens_per_layer(layers, tokens, schedule)) / layers
