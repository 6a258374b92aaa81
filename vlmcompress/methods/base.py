"""What a method is. A method knows tensors and grids; the engine knows models.

A method is one frozen dataclass whose fields are the paper's parameters with the paper's defaults.
It acts at one stage: a `Selector` or a `Reducer` between projector and decoder, a `DecoderMethod`
between decoder layers. `budget` is the true mean over decoder layers of the visual tokens of one
image; None asks for the paper's own setting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from vlmcompress.errors import BudgetError
from vlmcompress.tokens import Grid, Reduction, VisualTokens

Stage = Literal["pixels", "encoder", "projector", "decoder"]


class LayerView(Protocol):
    """What a decoder-stage method sees of one image before the layer where tokens are dropped.

    `n` counts the tokens of this forward that are still there (padding among them, always with
    weight 0); `V` those of the image. Tokens of earlier turns take part in the softmax but have no
    column.
    """

    @property
    def layer(self) -> int:
        """The first layer that will run on fewer tokens."""
        ...

    @property
    def grid(self) -> Grid:
        """The image's grid before anything was dropped; one row for several (`parts`)."""
        ...

    @property
    def parts(self) -> tuple[Grid, ...]:
        """The grids that the image is laid out as, one after the other; mostly one."""
        ...

    @property
    def visual(self) -> Tensor:
        """[V] int64: columns of the image's visual tokens among the n keys."""
        ...

    @property
    def text(self) -> Tensor:
        """[T] int64: columns of the prompt's text after its last visual token."""
        ...

    @property
    def index(self) -> Tensor:
        """[V] int64: raster index in `grid` of each surviving token."""
        ...

    def attention(
        self,
        rows: Literal["last", "text"] = "last",
        keys: Literal["all", "visual"] = "all",
        *,
        rope: bool = True,
        of: Literal["this", "next", "previous"] = "this",
    ) -> Tensor:
        """Softmax attention of the query rows, float32, per head.

        Args:
            rows: the last token, or the text after the last visual token.
            keys: softmax over all keys the row may see, or over the image's visual tokens only.
            rope: with or without rotary embedding of queries and keys.
            of: the layer whose weights are used: "this" is `layer`, about to run, on its own input;
                "previous" the layer that just ran, on its own input; "next" the weights of
                `layer + 1` on the input of `layer`.

        Returns:
            [H, R, n] for `keys="all"`, [H, R, V] for `keys="visual"`.
        """
        ...


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods; see `Selector`, `Reducer`, `DecoderMethod`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where the algorithm is from; "-" for a baseline."""
    summary: ClassVar[str]
    """One line for tables."""
    stages: ClassVar[frozenset[Stage]]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of `VisualTokens`, beyond features and grid, that the engine has to collect."""
    takes_budget: ClassVar[bool] = True
    """False for methods such as `full` whose count is their definition."""

    def encoder_layers(self, depth: int, whole: Sequence[int]) -> Collection[int]:
        """ViT layers whose attention a method with `encoder_attention` in `needs` asks for.

        They are the keys of `VisualTokens.encoder_attention`, in ascending order.

        Args:
            depth: layers that the features go through; layer `depth - 1` gives the features.
            whole: ascending, those of them whose attention spans an image (a frame of a clip).
                The values of other layers compare the tokens of one window only.
        """
        return whole[-1:]


@dataclass(frozen=True)
class ProjectorMethod(Method):
    """Acts once on the features that the projector made."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"projector"})

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """How many tokens of an image are kept; from the grid alone, so it is known beforehand.

        Raises:
            BudgetError: no budget was given and the method has no default.
        """
        if budget is None:
            raise BudgetError(f'{self.name} needs a budget, for example 64 or "25%"')
        return max(0, min(len(grid), round(budget)))


@dataclass(frozen=True)
class Selector(ProjectorMethod):
    """Keeps some tokens as they are."""

    @abstractmethod
    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64: the raster indices kept, ascending and unique."""

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64: the same indices in the method's own order, for `order="method"`."""
        return self.select(tokens, count)


@dataclass(frozen=True)
class Reducer(ProjectorMethod):
    """Makes fewer tokens out of many: mergers and poolers."""

    @abstractmethod
    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` new tokens with the tokens that each stands for."""


@dataclass(frozen=True)
class DecoderMethod(Method):
    """Drops tokens before some decoder layers."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"decoder"})

    @abstractmethod
    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """Decoder layer -> number of the image's tokens that enter it and all later ones.

        Layers are 0-based, ascending and at least 1 (before layer 0 is the projector stage).

        Raises:
            BudgetError: the mean over layers cannot meet the budget; says the smallest possible.
        """

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """[V] one score per surviving visual token of the image; higher is kept."""


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
