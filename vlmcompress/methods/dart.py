"""DART: keeps a few pivots and what is least like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.schedules import one_cut
from vlmcompress.ops.ranking import best, marked
from vlmcompress.ops.select import top_k
from vlmcompress.ops.similarity import unit_rows


@dataclass(frozen=True)
class DART(DecoderMethod):
    """Before layer k keep pivots, and of the other tokens those that duplicate no pivot.

    Pivots are the visual and the text tokens with the largest keys (sum of absolute values over all
    heads, as cached by layer k - 1). Each pivot in turn takes its share of the count from the
    tokens that are left: those of the lowest cosine to it, on the hidden states that enter layer k.
    No attention is computed. Official code: ZichenWen1/DART.

    Deviations:
        The count is exact: round(N * (1 - ratio)), or what the budget asks for. The official code
        rounds the share of a pivot down and adds the visual pivots, 124 of 576 for its 0.778.
        Visual pivots take their shares first, then text pivots, each in order of place, and the
        first of them one more where shares do not come out even. The official order is that of a
        Python set.
        Hidden states are compared without the last norm of the decoder, which the official code
        borrows to scale their dimensions.
        Where the text is shorter than `text_pivots` all of it are pivots.
    """

    name: ClassVar[str] = "dart"
    paper: ClassVar[str] = "arXiv 2502.11494"
    summary: ClassVar[str] = "drops duplicates of a few pivot tokens, without attention"

    k: int = 2
    """The first layer that runs on fewer tokens, 1 to L - 1."""
    ratio: float = 0.778
    """Share dropped when no budget is given; in [0, 1). One of those of the paper's scripts."""
    image_pivots: int = 4
    """Visual tokens that are pivots, 1 or more."""
    text_pivots: int = 4
    """Tokens of the text after the last visual token that are."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        for name, least in (("k", 1), ("image_pivots", 1), ("text_pivots", 0)):
            if getattr(self, name) < least:
                raise VLMCompressError(
                    f"dart: {name} must be {least} or more, got {getattr(self, name)}"
                )
        if not 0 <= self.ratio < 1:
            raise VLMCompressError(f"dart: ratio must be at least 0 and below 1, got {self.ratio}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: keep}, or {} where that keeps all."""
        return one_cut("dart", self.k, layers, tokens, budget, dropped=self.ratio)

    def score(self, view: LayerView) -> Tensor:
        """[V] how little a token is like the pivot that it is most like; inf for visual pivots.

        `keep` goes pivot by pivot instead.
        """
        unit, pivots, image = self._pivots(view, self.image_pivots)
        likeness = _cosines(unit, pivots.T).amax(1)
        return (-likeness).index_fill(0, image, torch.inf)

    def keep(self, view: LayerView, count: int) -> Tensor:
        """The pivots, then for each of them its share of the tokens least like it."""
        if not 0 < count < len(view.visual):
            return super().keep(view, count)
        unit, pivots, image = self._pivots(view, min(count, self.image_pivots))
        free = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
        free[image] = False
        share, more = divmod(count - len(image), len(pivots))
        for number, pivot in enumerate(pivots):
            if quota := share + (number < more):
                unlike = (-_cosines(unit, pivot)).masked_fill(~free, -torch.inf)
                free[best(unlike, quota)] = False
        return marked(~free, count)

    def _pivots(self, view: LayerView, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """[V, D] visual tokens and [P, D] pivots, rows of length 1; places of those in V."""
        size = view.keys(of="previous").abs().sum(dim=(0, 2))
        image = top_k(size[view.visual], count)
        text = view.text[top_k(size[view.text], self.text_pivots)][: self.text_pivots]
        unit, words = (unit_rows(view.hidden[rows]) for rows in (view.visual, text))
        return unit, torch.cat([unit[image], words]), image


def _cosines(unit: Tensor, pivots: Tensor) -> Tensor:
    """Of rows of length 1 [V, D] with pivots of length 1 [D] or [D, P], also under autocast."""
    with torch.autocast(unit.device.type, enabled=False):
        return unit @ pivots
