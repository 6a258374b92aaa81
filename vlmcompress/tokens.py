"""Visual tokens, the grid they lie on, and what a method makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError


@dataclass(frozen=True)
class Grid:
    """Where the visual tokens of one image or clip lie, in raster order `t*H*W + h*W + w`.

    An image has `t == 1`. The number of tokens is `len(grid)`.
    """

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 0:
            raise VLMCompressError(
                f"a grid has 0 or more tokens along each side, got {self.t}, {self.h}, {self.w}"
            )

    def __len__(self) -> int:
        return self.t * self.h * self.w

    def __str__(self) -> str:
        return f"{self.h}x{self.w}" if self.t == 1 else f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class Separator:
    """A placeholder that is no picture, such as the newline embedding at the end of a row."""

    place: int
    """Where it stands among the placeholders of its image."""
    start: int
    """First visual token of the row that it ends ..."""
    stop: int
    """... and the one after the last. It stays as long as any of these does."""


@dataclass(frozen=True)
class Layout:
    """How the placeholders of one image or clip follow one another in the prompt.

    Most families lay an image out as one grid. Some show it as several, an overview and tiles, and
    end rows with separators. Visual tokens are counted through all parts, without separators.
    """

    parts: tuple[Grid, ...]
    separators: tuple[Separator, ...] = ()

    @classmethod
    def of(cls, *parts: Grid) -> Layout:
        """Grids one after the other, without separators."""
        return cls(parts)

    @property
    def grid(self) -> Grid:
        """The only part, or all tokens in one row where there are several."""
        return self.parts[0] if len(self.parts) == 1 else Grid(1, 1, len(self))

    @property
    def placeholders(self) -> int:
        """Tokens and separators."""
        return len(self) + len(self.separators)

    @property
    def visual(self) -> Tensor:
        """[placeholders] bool, on the CPU: which are visual tokens, not separators."""
        visual = torch.ones(self.placeholders, dtype=torch.bool)
        visual[[separator.place for separator in self.separators]] = False
        return visual

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))

    def __add__(self, other: Layout) -> Layout:
        places, tokens = self.placeholders, len(self)
        moved = (
            Separator(s.place + places, s.start + tokens, s.stop + tokens) for s in other.separators
        )
        return Layout(self.parts + other.parts, (*self.separators, *moved))


@dataclass(frozen=True)
class Projection:
    """The projector of a model, for methods that probe it.

    It ends in a linear layer: projected = body(inputs) @ last.T, but for a constant.
    """

    inputs: Tensor
    """[M, P, D]: the P patches that became each of M projected features."""
    body: Callable[[Tensor], Tensor]
    """[M, P, D] -> [M, K]: all but the last linear layer. Computes in the dtype it is given. A
    `vlmcompress.ops.projector.Body` where there is one linear layer more and an activation."""
    last: Tensor
    """[C, K]: weight of the last linear layer."""
    to_tokens: Callable[[Tensor], Tensor]
    """[M] values of projected features -> [N] values of tokens."""


@dataclass(frozen=True)
class VisualTokens:
    """What a projector-stage method may look at: one image or one clip.

    Where an image is laid out as several grids, a method sees each by itself.

    Only the signals that a method names in `needs` are collected; the others are None.
    """

    features: Tensor
    """[N, D] after the projector, as the decoder will see them, in the model's dtype."""
    grid: Grid
    encoder_attention: Mapping[int, Tensor] | None = None
    """ViT layer, 0-based -> [N] attention received, float32: mean over heads and all queries (CLS
    among them), and over the patches of a token. Softmax and mean are over an image, a tile or a
    frame, in window layers of Qwen2.5-VL over a window."""
    cls_attention: Tensor | None = None
    """[N] attention of CLS to the patches at the feature layer, mean over heads, float32. Not
    scaled to 1: CLS attends to itself, too. The feature layer is the one whose output becomes the
    features, such as the last but one of CLIP in LLaVA-1.5."""
    keys: Tensor | None = None
    """[N, Dk] keys of the feature layer, all heads side by side, before rotary embedding; mean over
    the patches of a token."""
    text: Tensor | None = None
    """[T, D] embedded tokens of the instruction; `compress` says which text is not part of it."""
    relevance: Tensor | None = None
    """[N] cosine of each patch and the instruction in CLIP's space, float32: post-layernorm and
    visual projection of the features before the projector; mean over the patches of a token."""
    layer_keys: Mapping[int, Tensor] | None = None
    """ViT layer, 0-based -> [N, Dk] keys as in `keys`, of the layers that the method asks for."""
    layer_cls_attention: Mapping[int, Tensor] | None = None
    """ViT layer, 0-based -> [N] as in `cls_attention`, of the layers that the method asks for."""
    question_logits: Tensor | None = None
    """[N, H] float32, per head of the first decoder layer: the scaled product of the token's key
    and the instruction's queries (mean over its tokens), before rotary embedding and softmax."""
    vocabulary: Tensor | None = None
    """[V, D] input embeddings of all words, in the model's dtype."""
    projection: Projection | None = None
    """The projector as a function of what entered it."""
    sizes: Tensor | None = None
    """[N] float32: patches that each token stands for, where an encoder-stage method merged."""
    parts: tuple[Grid, ...] = ()
    """The grids that the tokens lie on, for methods with `across_parts`; else empty."""
    index: int = field(default=0)
    """Which image of the call this is; seeds of random methods depend on it."""
    part: int = 0
    """Which grid of the image; seeds depend on this, too."""


@dataclass(frozen=True)
class Reduction:
    """New visual tokens and their provenance.

    Output token k stands for the input tokens `members[offsets[k]:offsets[k + 1]]` and is placed
    at the smallest of them, or where `places` says; tokens are ordered by that place.
    """

    features: Tensor
    """[K, D]."""
    members: Tensor
    """[M] int64 raster indices, ascending inside a group."""
    offsets: Tensor
    """[K + 1] int64."""
    places: Tensor | None = None
    """[K] int64, ascending: one of the members of each; None for the smallest."""

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

    @classmethod
    def identity(cls, features: Tensor) -> Reduction:
        """Every token of `features` [N, D] stands for itself."""
        places = torch.arange(len(features) + 1, device=features.device)
        return cls(features, places[:-1], places)

    @classmethod
    def join(cls, parts: Sequence[Reduction], starts: Sequence[int]) -> Reduction:
        """Reductions of the parts of an image, whose tokens are numbered from `starts`."""
        members = [part.members + start for part, start in zip(parts, starts, strict=True)]
        ends = accumulate(len(part.members) for part in parts)
        offsets = [
            part.offsets[1:] + before for part, before in zip(parts, [0, *ends], strict=False)
        ]
        places = [part.anchors + start for part, start in zip(parts, starts, strict=True)]
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat(members),
            torch.cat([parts[0].offsets[:1], *offsets]),
            torch.cat(places) if any(part.places is not None for part in parts) else None,
        )

    @property
    def anchors(self) -> Tensor:
        """[K] int64, ascending: the place of each output token."""
        return self.members[self.offsets[:-1]] if self.places is None else self.places

    def named(self, tokens: Tensor) -> Reduction:
        """The same groups of tokens that are numbered `tokens` [N] elsewhere, in the same order."""
        places = None if self.places is None else tokens[self.places]
        return Reduction(self.features, tokens[self.members], self.offsets, places)

    def groups(self) -> list[list[int]]:
        """The members of each output token as Python lists."""
        bounds, members = self.offsets.tolist(), self.members.tolist()
        return [members[a:b] for a, b in pairwise(bounds)]
