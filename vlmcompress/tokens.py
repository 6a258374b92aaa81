"""Visual tokens, the grid they lie on, and what a method makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Where the visual tokens of one image or clip lie, in raster order `t*H*W + h*W + w`.

    An image has `t == 1`. The number of tokens is `len(grid)`.
    """

    t: int
    h: int
    w: int

    def __len__(self) -> int:
        return self.t * self.h * self.w

    def __str__(self) -> str:
        return f"{self.h}x{self.w}" if self.t == 1 else f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class VisualTokens:
    """What a projector-stage method may look at: one image or one clip.

    Only the signals that a method names in `needs` are collected; the others are None.
    """

    features: Tensor
    """[N, D] after the projector, as the decoder will see them, in the model's dtype."""
    grid: Grid
    encoder_attention: Mapping[int, Tensor] | None = None
    """ViT layer -> [N] attention received, mean over heads and queries, float32."""
    cls_attention: Tensor | None = None
    """[N] attention of CLS to the patches at the feature layer, mean over heads, float32."""
    keys: Tensor | None = None
    """[N, Dk] keys of the last ViT layer."""
    text: Tensor | None = None
    """[T, D] embedded tokens of the instruction."""
    relevance: Tensor | None = None
    """[N] image-text similarity where a text tower exists."""
    index: int = field(default=0)
    """Which image of the call this is; seeds of random methods depend on it."""


@dataclass(frozen=True)
class Reduction:
    """New visual tokens and their provenance.

    Output token k stands for the input tokens `members[offsets[k]:offsets[k + 1]]` and is placed
    at the smallest of them; tokens are ordered by that place.
    """

    features: Tensor
    """[K, D]."""
    members: Tensor
    """[M] int64 raster indices, ascending inside a group."""
    offsets: Tensor
    """[K + 1] int64."""

    @classmethod
    def from_groups(cls, features: Tensor, groups: Sequence[Tensor]) -> Reduction:
        """Sort `features` [K, D] and their `groups` (K index tensors) by smallest member."""
        groups = [group.sort().values for group in groups]
        order = sorted(range(len(groups)), key=lambda k: int(groups[k][0]))
        sizes = torch.tensor([0, *(len(groups[k]) for k in order)])
        members = torch.cat([groups[k] for k in order]) if groups else torch.zeros(0).long()
        device = features.device
        picked = features[torch.tensor(order, dtype=torch.long, device=device)]
        return cls(picked, members.to(device), sizes.cumsum(0).to(device))

    @property
    def anchors(self) -> Tensor:
        """[K] int64, ascending: the place (smallest member) of each output token."""
        return self.members[self.offsets[:-1]]

    def groups(self) -> list[list[int]]:
        """The members of each output token as Python lists."""
        bounds, members = self.offsets.tolist(), self.members.tolist()
        return [members[a:b] for a, b in pairwise(bounds)]
