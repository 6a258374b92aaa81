"""RESTORE: what a method has dropped comes back in merged tokens and in the decoder's attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, CompositionError
from vlmcompress.methods.contracts.asking import reducing, selecting
from vlmcompress.methods.contracts.method import (
    AskingReducer,
    AttentionBias,
    ProjectorMethod,
    Reducer,
    Selector,
)
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.ops.anchors import means, nearest_anchor
from vlmcompress.ops.density import distinctive
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.groups import at_medians, grouped
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import best, marked
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Restore(AskingReducer):
    """Repair a method: `"restore(divprune)"`. It keeps half of the budget, the rest is merged.

    Of a budget of n the method keeps floor(n / 2) tokens. Of all others the n - floor(n / 2) most
    distinctive become anchors, and each of the rest is averaged into its most similar one (cosine);
    a merged token stands at the lower median of its members.
    A token is distinctive if it is like many others and unlike those that are like fewer.

    In the decoder the attention logits of a token that stands for s get + ln s, in layer 0 all
    visual tokens of an image + ln(N / n); while the prompt is read, those of two tokens d positions
    apart get + ln(2 - c(d)), c the mean of cos(d * w) over the rotary frequencies w. The official
    code, cvlab-yonsei/RESTORE, has LLaVA-1.5 only; this follows the paper's equations.

    Around a method that merges by itself, or with `merge=False`, only the attention changes.
    Nothing is repaired in a prompt that lost nothing. Decoder-stage methods behind it rank by the
    attention without the bias, and what they leave keeps it. The bias is a mask of all queries and
    keys: FlashAttention takes none and is refused, as is a decoder with layers other than
    attention.

    Deviations:
        Density compares with *less* dense tokens, as the official code does; `density="peaks"`
        compares with denser ones, as its names and the clustering that it cites say.
        A cosine of exactly -1 counts as one; the official code takes it for "none".
        With three position axes (M-RoPE) d is the difference of the temporal ones, c the mean of
        all frequencies: ours, there is no official code for such models.
        With several images each has its own N / n; d is between tokens of one forward.
    """

    name: ClassVar[str] = "restore"
    paper: ClassVar[str] = "arXiv 2606.01711"
    summary: ClassVar[str] = "repairs a method: merges what it drops, and corrects attention"
    wraps: ClassVar[bool] = True

    of: str = "divprune"
    """The method, one between projector and decoder, with its options."""
    merge: bool = True
    """Whether half of the budget goes to merged tokens."""
    sizes: bool = True
    """Whether attention knows how many tokens each one stands for."""
    distance: bool = True
    """Whether attention fades less with distance."""
    density: Literal["reference", "peaks"] = "reference"
    """What a token must be unlike to be distinctive: less dense tokens, or denser ones."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        for name in ("on_grid", "across_parts"):
            object.__setattr__(self, name, getattr(self.base, name))
        object.__setattr__(self, "name", f"restore({self.of})")

    @cached_property
    def base(self) -> ProjectorMethod:
        """The method that is repaired."""
        # Specs know all methods, this one among them.
        from vlmcompress.methods.composition.spec import parse

        pipeline = parse(self.of)
        (found,) = pipeline.methods if len(pipeline.methods) == 1 else (None,)
        if not isinstance(found, Selector | Reducer) or isinstance(found, Restore):
            raise CompositionError(
                f"restore goes around one method between projector and decoder, got {self.of!r}"
            )
        if found.acts_at != "projector" or not found.takes_budget or pipeline.has_threshold:
            raise CompositionError(
                f"restore goes around a method that acts at the projector stage and takes a "
                f"budget, {self.of!r} does not"
            )
        return found

    @property
    def asks(self) -> frozenset[str]:
        """The signals of the method."""
        return self.base.asks

    @property
    def attention_bias(self) -> AttentionBias | None:
        """As the options say."""
        wanted = AttentionBias(self.sizes, self.distance)
        return wanted if self.sizes or self.distance else None

    def encoder_layers(self, depth: int, whole: Sequence[int]) -> Collection[int]:
        """Those of the method."""
        return self.base.encoder_layers(depth, whole)

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """That of the method.

        Raises:
            BudgetError: also where content would decide.
        """
        if budget is None and self.base.adaptive:
            raise BudgetError(f'{self.name} needs a budget, for example 64 or "25%"')
        return self.base.keep_count(grid, budget)

    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """What was kept has the bits that it came with, merged tokens are in the same dtype."""
        base, rows = self.base, tokens.features.detach()
        check_finite(rows)
        count = max(0, min(count, len(rows)))
        if isinstance(base, Reducer):
            return (yield from reducing(base, tokens, count))
        assert isinstance(base, Selector)
        kept = yield from selecting(base, tokens, count // 2 if self.merge else count)
        if not self.merge or not count:
            return Reduction(rows[kept], kept, torch.arange(len(kept) + 1, device=rows.device))
        return self._merged(tokens, rows, kept.to(rows.device), count)

    def _merged(self, tokens: VisualTokens, rows: Tensor, kept: Tensor, count: int) -> Reduction:
        other = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        rest = marked(other.index_fill(0, kept, False), len(rows) - len(kept))
        own, wanted = rows[rest], count - len(kept)
        anchors = best(distinctive(own, denser=self.density == "peaks"), wanted)
        nearest = nearest_anchor(own, anchors)
        sizes = None if tokens.sizes is None else tokens.sizes.to(rows.device)[rest]
        into, made = torch.arange(len(rows), device=rows.device), rows.clone()
        into[rest] = rest[anchors][nearest]
        made[rest[anchors]] = means(own, nearest, wanted, sizes).to(made.dtype)
        return at_medians(grouped(made, into, count, len(rows)))
