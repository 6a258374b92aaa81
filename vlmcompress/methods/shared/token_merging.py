"""What methods that merge similar tokens share: rounds, schedules, and the two places to act."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.before_projector import EncoderMethod, EncoderView, Merge
from vlmcompress.methods.contracts.method import Reducer, Stage
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.ops.finite import finite
from vlmcompress.ops.groups import Groups, halvings
from vlmcompress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Crowd:
    """The tokens of B tiles between two rounds of merging."""

    metric: Tensor
    """[B, n, d]: what is compared."""
    sizes: Tensor
    """[B, n] float32: patches that each token stands for."""
    attention: Tensor | None = None
    """[B, n] float32: attention that each token receives, where the method reads it."""
    protected: int = 0
    """How many tokens at the beginning stay alone."""
    done: float = 0.0
    """Share of the layers or rounds that are over."""
    inside: bool = False
    """Whether this is between layers of a vision tower."""


def merge_in_rounds(
    features: Tensor,
    crowd: Crowd,
    keep: int,
    match: Callable[[Crowd, int], tuple[Groups, Tensor]],
) -> Reduction:
    """Merge until `keep` tokens are left of each tile, at most half of them in a round.

    Args:
        features: [B, n, D] finite; the tiles are one after the other.
        crowd: the same tokens before the first round. What it holds is merged with them: sizes and
            attention add up, the metric becomes the same mean.
        keep: from 1 to n.
        match: the groups of a round that takes so many tokens, and [B, n] weights of the tokens.
    """
    values, groups = features.float(), Groups.single(features)
    # Mostly the features themselves are compared; they are averaged once then.
    apart = crowd.metric is not features
    counts = halvings(features.shape[1], keep)
    for done, count in enumerate(counts):
        crowd = replace(crowd, done=done / len(counts))
        found, weights = match(crowd, crowd.metric.shape[1] - count)
        values = found.mean(values, weights)
        attention = None if crowd.attention is None else found.sum(crowd.attention)
        metric = found.mean(crowd.metric, weights) if apart else values
        crowd = Crowd(metric, found.sum(crowd.sizes), attention)
        groups = groups.then(found)
    return groups.reduction(values.to(features.dtype))


@dataclass(frozen=True)
class Merger(EncoderMethod, Reducer):
    """Merges tokens between the layers of a vision tower, or in rounds after the projector.

    The papers merge single patches. Where the projector makes one token of a block of patches
    (Qwen, InternVL, SmolVLM, Gemma 3) whole blocks merge, which is ours: keys, hidden states and
    attention of a block are the means over its patches, and a group becomes the mean of its
    members patch by patch, each with those at its place in the block. The frames of a clip merge
    each by itself. Where a tower has rotary positions or windows, a group goes on at the place of
    its leader, the token that the others join.

    Deviations that all of them share:
        In the tower tokens are merged at the end of a layer, where the papers do it between its
        attention and its MLP: hooks of a model cannot reach between.
        Tokens keep their raster order between layers and rounds, so that even and odd positions
        are neighbours; the official codes leave them in an order of their own.
        Similarities are float32, sorts are stable, ties go to the lowest index.
        The rounds after the projector are ours: each takes what is too much, at most half.
    """

    stages: ClassVar[frozenset[Stage]] = frozenset({"encoder", "projector"})

    stage: Literal["encoder", "projector"] = "encoder"
    """Where it acts."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))

    @property
    def acts_at(self) -> Stage:
        """The stage that was chosen."""
        return self.stage

    @abstractmethod
    def match(self, crowd: Crowd, remove: int) -> Tensor:
        """[B, n] int64 leaders (`vlmcompress.ops.merge`) that save `remove` tokens, <= n // 2."""

    def weights(self, crowd: Crowd) -> Tensor:
        """[B, n] positive: weights of the means. By size, as ToMe does."""
        return crowd.sizes

    @abstractmethod
    def seen(self, view: EncoderView) -> Crowd:
        """The tokens after a layer of a tower as `match` compares them."""

    def merge(self, view: EncoderView, count: int) -> Merge:
        """Groups such that `count` patches are left, and the protected tokens.

        Raises:
            VLMCompressError: `count` is not between half of the patches, rounded up, and all.
        """
        crowd, patches = self.seen(view), view.hidden.shape[1] - view.protected
        if not patches - patches // 2 <= count <= patches:
            raise VLMCompressError(
                f"{self.name} can merge {patches} patches to {patches - patches // 2} to {patches} "
                f"in one layer, got {count}"
            )
        # A tower has one layer more than the features of CLIP in LLaVA go through.
        done = view.layer / (view.layers + 1)
        crowd = replace(crowd, protected=view.protected, done=done, inside=True)
        return Merge(self.match(crowd, patches - count), self.weights(crowd))

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` means; all frames of a clip are one crowd."""
        features = finite(tokens.features)[None]
        crowd = Crowd(features, self.counted(tokens), self.attended(tokens))
        if count < 1:
            return Reduction.from_groups(tokens.features[:0], [])
        made = merge_in_rounds(features, crowd, count, self._round)
        return replace(made, features=made.features.to(tokens.features.dtype))

    def counted(self, tokens: VisualTokens) -> Tensor:
        """[1, N] float32: patches that each token stands for."""
        if tokens.sizes is None:
            return torch.ones(1, len(tokens.features), device=tokens.features.device)
        return tokens.sizes.to(tokens.features.device, torch.float32)[None]

    def attended(self, tokens: VisualTokens) -> Tensor | None:
        """[1, N] attention that each token receives in the tower, where `match` reads it."""
        return None

    def _round(self, crowd: Crowd, remove: int) -> tuple[Groups, Tensor]:
        return Groups.of(self.match(crowd, remove)), self.weights(crowd)

    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        """The same number of tokens in every layer; in the last ones the rest."""
        return self.constant(range(layers), tokens, keep)

    def constant(self, layers: range, tokens: int, keep: int) -> dict[int, int]:
        """The smallest number per layer that reaches `keep`, at most half of the tokens there.

        Raises:
            BudgetError: halving in every layer leaves more.
        """
        self.check_reachable(len(layers), tokens, keep)
        fewest = -(-(tokens - keep) // max(len(layers), 1))
        for remove in range(fewest, tokens + 1):
            counts = descend(layers, tokens, keep, partial(_take, remove))
            if min(counts.values(), default=tokens) == keep:
                break
        return counts

    def check_reachable(self, layers: int, tokens: int, keep: int) -> None:
        """Halving in each of `layers` layers bounds the number of tokens from below.

        Raises:
            BudgetError: `keep` is below, or above `tokens`.
        """
        least = tokens
        for _ in range(layers):
            least -= least // 2
        if not least <= keep <= tokens:
            raise BudgetError(
                f"{self.name} can leave {least} to {tokens} of {tokens} patches in a tower of "
                f"{layers} layers where it merges, got {keep}"
            )


def descend(
    layers: Iterable[int], tokens: int, keep: int, step: Callable[[int], int]
) -> dict[int, int]:
    """Layer -> tokens that leave it, where `step` changes their number; never below `keep`."""
    counts = {}
    for layer in layers:
        left = max(keep, step(tokens))
        if left < tokens:
            counts[layer] = tokens = left
    return counts


def _take(remove: int, tokens: int) -> int:
    return tokens - min(remove, tokens // 2)
