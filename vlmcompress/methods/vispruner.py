"""VisPruner: important tokens, and others that are no duplicates of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.per_frame import select_by_frame
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.similarity import MATRIX_BYTES, self_cosines, unit_rows
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class VisPruner(Selector):
    """Keep what CLS attends to; thin out the rest round by round until the budget is met.

    Of a budget of T: the int(T * important_ratio) tokens with the highest attention of CLS; then
    the rest, in the order of that attention. In every round its 1st, 3rd, 5th ... token is compared
    with the 2nd, 4th, 6th ..., and those of the first half most similar (cosine) to one of the
    second are dropped, up to `step`. Who is left of the first half, the least similar last, goes
    before the second half in the next round. Official code: Theia-4869/VisPruner.

    Deviations:
        Similarity is that of projected features, where the official code takes those before the
        projector.
        Where there is no CLS: attention received from all tokens at the deepest layer (ours).
        A round never drops more than its first half holds; for the last few tokens the official
        code fails.
        The frames of a clip are taken one by one, with even shares of the budget.
    """

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "arXiv 2412.01818"
    summary: ClassVar[str] = "keeps what CLS attends to, and drops duplicates of the rest"
    needs: ClassVar[frozenset[str]] = frozenset({NEED})

    ratio: float = 0.222
    """Share kept when no budget is given; in (0, 1]. 128 of 576, as in the official example."""
    important_ratio: float = 0.5
    """Share of the budget that goes by attention; 0 to 1."""
    step: int = 8
    """Tokens dropped in a round; 1 or more. From the official code."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", important_ratio="[0, 1]", step="[1, inf)")

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        attention, unit = saliency(tokens), unit_rows(tokens.features)

        def choose(own: slice, quota: int) -> Tensor:
            order = attention[own].argsort(descending=True, stable=True)
            important = int(quota * self.important_ratio)
            rest = _thinned(unit[own], order[important:], quota - important, self.step)
            return torch.cat([order[:important], rest])

        with torch.autocast(unit.device.type, enabled=False):
            return select_by_frame(tokens.grid, count, choose, unit.device)


def _thinned(unit: Tensor, rest: Tensor, count: int, step: int) -> Tensor:
    """[count] int64: the kept ones of `rest` [R], indices into the rows of `unit` [n, D]."""
    if count == 0:
        return rest[:0]
    # All similarities at once where they fit: they do not change from round to round.
    similar = self_cosines(unit) if 4 * len(unit) ** 2 <= MATRIX_BYTES else None
    while len(rest) > count:
        first, second = rest[::2], rest[1::2]
        if similar is None:
            closest = (unit[first] @ unit[second].T).amax(1)
        else:
            # Whole rows: several times faster than the columns of `first` alone.
            closest = similar.index_select(0, second).amax(0)[first]
        order = closest.argsort(descending=True, stable=True)
        rest = torch.cat([first[order[min(step, len(rest) - count) :]], second])
    return rest
