"""HiPrune: what the layers of the vision tower attend to, middle and deep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.per_frame import select_by_frame
from vlmcompress.methods.shared.saliency import received
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.ranking import best, marked, ranks
from vlmcompress.tokens import Grid, VisualTokens

# LLaVA takes the output of layer 23 of CLIP-L; the paper's object layer there.
_CLIP_DEPTH, _CLIP_OBJECT = 23, 9


@dataclass(frozen=True)
class HiPrune(Selector):
    """Keep what a middle layer attends to, its neighbours, and what the deepest layer attends to.

    Of a budget of N': round(N' * alpha / 5) anchors, the tokens that receive most attention in the
    object layer; buffers, the up to four tokens next to each anchor on the grid; registers, the
    tokens that receive most in the deepest layer, for the rest (Equations 4 to 7). Attention
    received is the mean over heads and queries. Official code: Danielement321/HiPrune.

    The object layer is the paper's for the CLIP of LLaVA (the 9th, where layer 23 gives the
    features) and for Qwen2.5-VL (the 16th of 32, registers from the 32nd). Other towers: the middle
    one, L / 2, as in Table 1 of the paper for SigLIP and others; ours is that L counts the layers
    that the features go through, and that where most layers attend within windows it is the nearest
    that spans the image.

    Deviations:
        Neighbours are those of the grid. The official code takes index +-1 and +-width, which wraps
        from row to row, and clamps to the first and last token instead of leaving out what is off
        the grid.
        What is taken is masked, so the count is exact. The official code for Qwen lowers its score
        by 1, which does not always exclude it.
        Buffers that do not fit are those with the lowest object scores (ours; the official code
        fails).
        The frames of a clip are taken one by one, with even shares of the budget (ours; the
        official code gives every image of a batch the same share).
    """

    name: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = "arXiv 2508.00553"
    summary: ClassVar[str] = "keeps what middle and deep layers of the vision tower attend to"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    on_grid: ClassVar[bool] = True

    ratio: float = 0.334
    """Share kept when no budget is given; in (0, 1]. The paper also has 0.223 and 0.112."""
    alpha: float = 0.1
    """Share of anchors and their buffers, five tokens an anchor; 0 to 5."""
    object_layer: int | None = None
    """1-based layer of the vision tower that finds anchors; None for the rule above."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", alpha="[0, 5]")
        if self.object_layer is not None and self.object_layer < 1:
            raise VLMCompressError(
                f"{self.name}: object_layer counts from 1, got {self.object_layer}"
            )

    def encoder_layers(self, depth: int, whole: Sequence[int]) -> Collection[int]:
        """The object layer and the deepest one of `whole`."""
        if self.object_layer is not None:
            return {self.object_layer - 1, *whole[-1:]}
        middle = (_CLIP_OBJECT if depth == _CLIP_DEPTH else depth // 2) - 1
        nearest = sorted(whole, key=lambda layer: (abs(layer - middle), layer))
        return {*nearest[:1], *whole[-1:]}

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """round(ratio * N) without a budget, at least 1."""
        return super().keep_count(
            grid, max(1, self.ratio * len(grid)) if budget is None else budget
        )

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        keep = self._keeper(tokens)
        device = tokens.features.device
        return select_by_frame(
            tokens.grid, count, lambda own, quota: marked(keep(own, quota), quota), device
        )

    def _keeper(self, tokens: VisualTokens) -> Callable[[slice, int], Tensor]:
        """(tokens of a frame, its quota) -> [h * w] bool: those kept."""
        check_finite(tokens.features)
        found = received(self.name, tokens)
        middle, deep = found[min(found)], found[max(found)]

        def keep(own: slice, quota: int) -> Tensor:
            anchors = min(quota, round(quota * self.alpha / 5))
            kept = add_best(torch.zeros_like(deep[own], dtype=torch.bool), middle[own], anchors)
            near = _neighbours(kept.view(tokens.grid.h, -1)).flatten()
            # Buffers before registers, however many there are.
            order = torch.where(near, len(near) + ranks(middle[own]), ranks(deep[own]))
            return add_best(kept, order.float(), quota - anchors)

        return keep


def add_best(kept: Tensor, scores: Tensor, count: int) -> Tensor:
    """[n] bool: `kept` and the `count` others with the highest of `scores` [n]."""
    return kept.index_fill(0, best(scores.masked_fill(kept, -torch.inf), count), True)


def _neighbours(marked: Tensor) -> Tensor:
    """[h, w] bool: places above, below, left or right of a marked one."""
    near = torch.zeros_like(marked)
    near[1:] |= marked[:-1]
    near[:-1] |= marked[1:]
    near[:, 1:] |= marked[:, :-1]
    near[:, :-1] |= marked[:, 1:]
    return near
