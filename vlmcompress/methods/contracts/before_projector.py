"""Methods that act before the projector: on pixels, and inside the vision tower.

The decoder's placeholders are counted before anything runs. What these methods save is therefore
put back as copies after the projector, and only one token of each group enters the decoder.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from vlmcompress.methods.contracts.method import Method, Stage, share_kept
from vlmcompress.ops.questions import Asking
from vlmcompress.tokens import Grid


class EncoderView(Protocol):
    """What an encoder-stage method sees after a layer of a vision tower: a batch of B tiles.

    They are the tiles of a call, or the frames of one image or clip. A token is what becomes one
    visual token: where that is a block of patches, it has their mean. `n` counts the tokens that
    are left, the first `protected` of them (CLS) included.
    """

    @property
    def layer(self) -> int:
        """The layer that just ran, 0-based ..."""
        ...

    @property
    def layers(self) -> int:
        """... of so many that the features go through."""
        ...

    @property
    def protected(self) -> int:
        """How many tokens at the beginning are no patches and must stay alone: 1 with CLS."""
        ...

    @property
    def hidden(self) -> Tensor:
        """[B, n, D]: what the layer gave, in the dtype of the tower."""
        ...

    @property
    def sizes(self) -> Tensor:
        """[B, n] float32: tokens of the beginning that each token stands for."""
        ...

    def keys(self) -> Tensor:
        """[B, n, d] float32: keys of the layer that just ran, before any rotary embedding, mean
        over heads."""
        ...

    def received(self) -> Tensor:
        """[B, n] float32: attention received in the layer that just ran, mean over heads and all
        queries of the tile; those of other windows give nothing."""
        ...


@dataclass(frozen=True)
class Merge:
    """Which token joins which in a batch of B tiles."""

    leader: Tensor
    """[B, n] int64: a member of the group that each token belongs to, the same for all members and
    its own leader. The number of groups is the same in every tile. Where a tower knows places, the
    group goes on at that of its leader."""
    weights: Tensor
    """[B, n] float32, positive: a group becomes the mean of its members with these weights."""


@dataclass(frozen=True)
class EncoderMethod(Method):
    """Merges tokens between the layers of a vision tower: all patches of each, place by place."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"encoder"})

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Tokens that leave the tower of a tile of the given grid, without CLS."""
        return share_kept(self.name, grid, budget)

    @abstractmethod
    def schedule(self, layers: int, tokens: int, keep: int) -> dict[int, int]:
        """Tower layer, 0-based -> tokens that leave it, descending to `keep`; without CLS.

        Args:
            layers: that the features go through.
            tokens: of a tile or frame.
            keep: to be left after the last of them.
        """

    @abstractmethod
    def merge(self, view: EncoderView, count: int) -> Merge:
        """Groups such that `count` tokens are left, and the protected ones."""

    @property
    def proportional(self) -> bool:
        """Whether later layers attend to a token in proportion to its size."""
        return False


@dataclass(frozen=True)
class TokenPatches:
    """What enters a layer of a vision tower: one image or clip, or a batch of B tiles."""

    hidden: Tensor
    """[B, N, m, D]: hidden states of the m patches that become each of N tokens, raster order."""
    grid: Grid
    """Of the N tokens."""


@dataclass(frozen=True)
class TowerDropper(Method):
    """Drops tokens between the layers of a vision tower: all patches that become one together.

    From the layer on they are no keys and no queries; the others keep their positions.
    """

    stages: ClassVar[frozenset[Stage]] = frozenset({"encoder"})

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Tokens that leave the tower, of an image, clip or tile of the given grid."""
        return share_kept(self.name, grid, budget, getattr(self, "ratio", None))

    @abstractmethod
    def before(self, depth: int) -> int:
        """The layer before which tokens leave, 0-based: so many layers see all of them.

        Args:
            depth: layers that the features go through.

        Raises:
            VLMCompressError: there is no such layer.
        """

    @property
    def shortens(self) -> bool:
        """Whether the tower goes on without what leaves; else only the decoder does."""
        return True

    def suits(self, patches: int) -> None:
        """Raise where it cannot choose among tokens of so many patches each.

        Raises:
            VLMCompressError: it cannot.
        """

    @abstractmethod
    def select(self, tokens: TokenPatches, count: int) -> Tensor:
        """[B, count] int64: of each the raster indices that stay, ascending and unique."""

    def selecting(self, tokens: TokenPatches, count: int) -> Asking[Tensor]:
        """`select` of one image or clip that yields what it has to know: [1, K], K <= count.

        Fewer than `count` only where the method is `adaptive` and no budget was given.
        """
        yield from ()  # asks nothing
        return self.select(tokens, count)


@dataclass(frozen=True)
class Resizer(Method):
    """Shows the vision encoder a smaller picture, where it takes pictures of any size."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"pixels"})

    @abstractmethod
    def shape(self, grid: Grid, budget: float | None) -> Grid:
        """The grid of tokens to be encoded instead of `grid`: the same t, at most its h and w.

        The same again when asked for the count that it made.
        """

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Tokens of that grid."""
        return len(self.shape(grid, budget))


@dataclass(frozen=True)
class PixelTokens:
    """The pixels that would become each visual token of one image or clip."""

    pixels: Tensor
    """[N, P] float32: all values of the patches that a token is made of, normalised as the
    processor did; raster order."""
    grid: Grid


@dataclass(frozen=True)
class PixelSelector(Method):
    """Leaves out patches before the encoder sees them; the others keep their positions."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"pixels"})

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """Tokens that stay, or the most that can where content decides."""
        return share_kept(self.name, grid, budget)

    @abstractmethod
    def select(self, tokens: PixelTokens, count: int, exact: bool) -> Tensor:
        """Raster indices that stay, ascending and unique.

        Args:
            tokens: of one image or clip.
            count: how many.
            exact: False where no budget was given, so that fewer may stay.
        """
