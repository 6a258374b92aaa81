"""HoloV: a share of the budget for every part of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingSelector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.per_frame import frame_quotas, select_by_frame
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import best
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import Grid, VisualTokens

_EPS = 1e-6


@dataclass(frozen=True)
class HoloV(AskingSelector):
    """Cut the image into crops; give each a quota by its mean score, keep its best tokens.

    Score of a token = alpha * a + beta * v * mean(a) / mean(v): `a` is the attention of CLS, `v`
    the variance of its cosines with the other tokens of its crop, both means over the crop. A crop
    is given the floor of its share of the budget; what rounding leaves goes to the crops of the
    highest mean scores, one each. Official code: obananas/HoloV.

    Deviations:
        Crops are `side` x `side` rectangles of the grid; the official code cuts the raster order
        into as many strips of equal length.
        Within a crop the tokens with the best scores are kept; the official code computes them for
        the quotas and then goes by attention alone.
        Variance leaves out the token itself; the official code lets it in with a cosine of 0.
        What does not fit a crop is dealt out again among the others by the same rule (ours); the
        official code keeps fewer and fills up with zeros.
        Where there is no CLS: attention received from all tokens at the deepest layer (ours).
        The frames of a clip are taken one by one, with even shares of the budget (ours).
    """

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = "arXiv 2510.02912"
    summary: ClassVar[str] = "keeps the best of every crop of the image"
    needs: ClassVar[frozenset[str]] = frozenset({NEED})
    on_grid: ClassVar[bool] = True

    ratio: float = 0.111
    """Share kept when no budget is given; in (0, 1]. 64 of 576."""
    side: int = 4
    """Crops along each side, at most one per row or column; 1 or more. The official code has 16
    crops for LLaVA."""
    alpha: float = 1.0
    """Weight of attention; 0 or more. From the official code, as is beta."""
    beta: float = 0.09
    """Weight of the variance of similarity; 0 or more."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", side="[1, inf)", alpha="[0, inf)", beta="[0, inf)")

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending."""
        attention, unit = saliency(tokens), unit_rows(tokens.features)
        crops = [crop.to(unit.device) for crop in _crops(tokens.grid, self.side)]

        def score(own: slice) -> list[Tensor]:
            return [self._scores(attention[own][crop], unit[own][crop]) for crop in crops]

        with torch.autocast(unit.device.type, enabled=False):
            scores = {own.start: score(own) for own, _ in frame_quotas(tokens.grid, count)}
        if not scores:
            return torch.empty(0, dtype=torch.long, device=unit.device)
        # Quotas are dealt on the CPU: one question for all frames.
        means = yield torch.stack(
            [torch.stack([one.mean() for one in found]) for found in scores.values()]
        )
        weights = dict(zip(scores, means.tolist(), strict=True))

        def choose(own: slice, quota: int) -> Tensor:
            quotas = _quotas(weights[own.start], [len(crop) for crop in crops], quota)
            dealt = zip(crops, scores[own.start], quotas, strict=True)
            return torch.cat([crop[best(score, most)] for crop, score, most in dealt if most])

        return select_by_frame(tokens.grid, count, choose, unit.device)

    def _scores(self, attention: Tensor, unit: Tensor) -> Tensor:
        """[n] scores of the tokens of a crop: [n] attention, [n, D] features of length 1."""
        others = len(unit) - 1
        if others == 0:
            return self.alpha * attention
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        cosine = (unit @ unit.T).masked_fill(itself, 0)
        apart = (cosine - cosine.sum(1, keepdim=True) / others).masked_fill(itself, 0)
        variance = apart.square().sum(1) / others
        scale = attention.abs().mean() / (variance.mean() + _EPS)
        return self.alpha * attention + self.beta * scale * variance


def _crops(grid: Grid, side: int) -> list[Tensor]:
    """Indices within a frame, crop by crop: bands i*h//a to (i+1)*h//a of rows, and of columns."""
    places = torch.arange(grid.h * grid.w).view(grid.h, grid.w)
    return [
        crop.flatten()
        for band in places.tensor_split(_cuts(grid.h, side))
        for crop in band.tensor_split(_cuts(grid.w, side), dim=1)
    ]


def _cuts(size: int, side: int) -> list[int]:
    parts = min(side, size)
    return [part * size // parts for part in range(1, parts)]


def _quotas(weights: Sequence[float], sizes: Sequence[int], count: int) -> list[int]:
    """`count` tokens dealt to crops in proportion to their weights, at most their sizes.

    `count` is at most the sum of `sizes`. Weights below 0 count as 0.
    """
    weights = [max(weight, 0.0) for weight in weights]
    quotas = [0] * len(sizes)
    while left := count - sum(quotas):
        room = [i for i in range(len(sizes)) if quotas[i] < sizes[i]]
        if not any(weights[i] for i in room):
            weights = [1.0] * len(sizes)
        total = sum(weights[i] for i in room)
        shares = {i: int(left * weights[i] / total) for i in room}
        rest = left - sum(shares.values())
        for rank, i in enumerate(sorted(room, key=lambda i: -weights[i])):
            quotas[i] = min(sizes[i], quotas[i] + shares[i] + (rank < rest))
    return quotas
