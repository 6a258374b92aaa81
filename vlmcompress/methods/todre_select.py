"""ToDRE, stage 1: tokens that differ from one another in sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.random import Random
from vlmcompress.methods.shared.saliency import check_signal
from vlmcompress.ops.select import max_sum
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class TodreSelect(Selector):
    """Start from the token that CLS attends to most, then keep adding the least similar one.

    Greedy max-sum diversity on the cosine of projected features (section 4, Algorithm 1). A clip is
    one pool, its pivot the best of all frames. Without CLS the pivot is a random token, as in the
    paper. There is no official code.

    Deviations:
        CLS attention is that of the layer that gives the features, the last but one of CLIP in
        LLaVA, where the paper says the last.
        An image laid out as several grids is selected grid by grid, each with its own pivot, where
        the paper has one pool with the pivot in the overview.
        A token of zeros, of which the paper does not speak, is kept last.
        Kept tokens stay in raster order; the paper does not say.
    """

    name: ClassVar[str] = "todre-select"
    paper: ClassVar[str] = "arXiv 2505.18757"
    summary: ClassVar[str] = "keeps features of the largest summed distance"
    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention|"})

    ratio: float = 0.25
    """Share kept when no budget is given; in (0, 1]. The paper has 0.25 and 0.1."""
    seed: int = 0
    """Seed of the random pivot token where there is no CLS; 0 or more."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", seed="[0, inf)")

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        return self.pick(tokens, count).sort().values

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, the pivot first."""
        # max_sum always gives one.
        return max_sum(tokens.features, count, self._pivot(tokens), order="picked")[:count]

    def _pivot(self, tokens: VisualTokens) -> int | Tensor:
        if tokens.cls_attention is None:
            return int(Random(seed=self.seed).select(tokens, 1))
        return check_signal("cls_attention", tokens.cls_attention, tokens).argmax()
