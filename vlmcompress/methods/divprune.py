"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.methods.contracts.method import AskingSelector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.contracts.threshold import ByThreshold, staying
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.select import farthest_point, spread_out
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class DivPrune(ByThreshold, AskingSelector):
    """Keep the tokens whose closest pair is as far apart as possible, greedily.

    Max-min diversity on the cosine distance of projected features (Algorithm 1); no attention, no
    text. Official code: vbdi/divprune.

    With a `threshold` picking ends when no token is farther than that, 1 - cosine, from all that
    are picked (ours).

    Deviations:
        Distances are float32 where the official code computes in the dtype of the model; its
        picks in half precision differ.
        Picked tokens are masked, as in Algorithm 1. The official code does not and can return the
        same token twice when tokens repeat.
        A token of zeros is picked last, where the official code yields NaN.
        The frames of a clip are one pool, as in the paper.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "arXiv 2503.02175"
    summary: ClassVar[str] = "keeps the most diverse features"

    ratio: float = 0.098
    """Share kept when no budget is given; in (0, 1]."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")
        self.check_threshold(2)

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending."""
        if self.threshold is not None:
            return (yield from staying(spread_out(tokens.features, self.threshold)))
        # farthest_point always gives one.
        return farthest_point(tokens.features, count)[:count]

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, the farthest point first."""
        if self.threshold is not None:
            count = len(self.select(tokens, count))
        return farthest_point(tokens.features, count, order="picked")[:count]
