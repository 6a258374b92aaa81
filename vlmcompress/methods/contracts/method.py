"""What a method is. A method knows tensors and grids; the engine knows models.

A method is one frozen dataclass whose fields are the paper's parameters with the paper's defaults.
It acts at one stage: a `Selector` or a `Reducer` between projector and decoder, those of
`before_projector` and `decoder` at the others. `budget` is the true mean over decoder layers of the
visual tokens of one image; None asks for the paper's own setting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vlmcompress.errors import BudgetError, CompositionError
from vlmcompress.ops.questions import Asking, answered
from vlmcompress.tokens import Grid, Reduction, VisualTokens

Stage = Literal["pixels", "encoder", "projector", "decoder"]
OF_THE_QUESTION = frozenset({"text", "relevance", "question_logits"})
"""Signals that read the instruction."""


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods."""

    name: ClassVar[str]
    paper: ClassVar[str] = "-"
    """Where the algorithm is from; "-" for a baseline."""
    summary: ClassVar[str]
    """One line for tables."""
    stages: ClassVar[frozenset[Stage]]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of `VisualTokens`, beyond features and grid, that the engine has to collect. "a|b"
    asks for the first that the model gives, "a|" for a where the model gives it."""
    takes_budget: ClassVar[bool] = True
    """False for methods such as `full` whose count is their definition."""
    adaptive: ClassVar[bool] = False
    """Whether content decides how many tokens stay where no budget is given; the counts known
    beforehand are then upper bounds."""
    across_parts: ClassVar[bool] = False
    """Whether the method needs all grids of an image at once, rather than one after the other."""
    wraps: ClassVar[bool] = False
    """Whether it goes around another method, whose spec comes first in its parentheses and is the
    option `of`."""
    on_grid: ClassVar[bool] = False
    """Whether it needs the neighbours of tokens on their grid, which an encoder-stage method breaks
    up."""

    @property
    def asks(self) -> frozenset[str]:
        """`needs` of this very instance, whose options may leave out some."""
        return self.needs

    @property
    def acts_at(self) -> Stage:
        """The stage where it acts: one of `stages`."""
        (stage,) = self.stages
        return stage

    def settled(self, family: str, stages: Collection[Stage]) -> Method:
        """The method as it acts in a model that lets methods in at `stages`.

        Raises:
            CompositionError: not at the stage where it acts.
        """
        if self.acts_at in stages:
            return self
        other = next((stage for stage in stages if stage in self.stages), None)
        way = f'; "{self.name}(stage={other!r})" is possible' if other else ""
        raise CompositionError(
            f"{self.name} acts at the {self.acts_at} stage, which {family} does not allow: "
            f"it allows {', '.join(stages)}{way}"
        )

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
class AttentionBias:
    """What a method adds to the attention logits of all decoder layers, for what it has dropped."""

    sizes: bool
    """ln of the tokens that each one stands for; in layer 0 the same for all of an image."""
    distance: bool
    """ln(2 - c(d)) for tokens d positions apart, c the mean of cos(d * w) over the rotary
    frequencies w; among the tokens of a prompt that has lost any, not while answers are written."""


@dataclass(frozen=True)
class ProjectorMethod(Method):
    """Acts once on the features that the projector made."""

    stages: ClassVar[frozenset[Stage]] = frozenset({"projector"})

    @property
    def attention_bias(self) -> AttentionBias | None:
        """What it wants to be added to attention logits; mostly nothing."""
        return None

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """How many tokens of an image are kept; from the grid alone, so it is known beforehand.

        Without a budget the share that a field `ratio` gives, rounded, at least 1.

        Raises:
            BudgetError: no budget was given and the method has no default.
        """
        return share_kept(self.name, grid, budget, getattr(self, "ratio", None))

    def goes_by(self, grid: Grid) -> bool:
        """Whether grid and count alone say which places are left, whatever the tokens are.

        An engine that lays out prompts beforehand then knows them, too.
        """
        return False


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
class AskingSelector(Selector):
    """One that must know values of the device on its way.

    The engine calls `selecting` and asks for what all images must know at once; by itself `select`
    waits for each.
    """

    @abstractmethod
    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """`select` that yields what it has to know, see `vlmcompress.ops.questions`."""

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """As `Selector.select` says."""
        return answered(self.selecting(tokens, count))


@dataclass(frozen=True)
class AskingReducer(Reducer):
    """One that must know values of the device on its way, as `AskingSelector`."""

    @abstractmethod
    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """`reduce` that yields what it has to know."""

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """As `Reducer.reduce` says."""
        return answered(self.reducing(tokens, count))


def share_kept(name: str, grid: Grid, budget: float | None, ratio: float | None = None) -> int:
    """`budget` tokens, at most those of the grid; without a budget `ratio` of them, at least 1.

    Raises:
        BudgetError: there is neither.
    """
    if budget is None and ratio is not None:
        return max(1, round(ratio * len(grid)))
    if budget is None:
        raise BudgetError(f'{name} needs a budget, for example 64 or "25%"')
    return max(0, min(len(grid), round(budget)))


def resolve(needs: Iterable[str], given: Collection[str]) -> tuple[frozenset[str], list[str]]:
    """The signals to collect from a model that gives `given`, and the needs that it cannot meet.

    Args:
        needs: as in `Method.needs`.
        given: what the model gives.
    """
    collected, missing = set(), []
    for need in sorted(needs):
        choices = need.split("|")
        found = next((choice for choice in choices if not choice or choice in given), None)
        if found is None:
            missing.append(" or ".join(choices))
        elif found:
            collected.add(found)
    return frozenset(collected), missing
