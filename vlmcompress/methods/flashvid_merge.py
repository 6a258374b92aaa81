"""FlashVID, before the decoder: attended and diverse tokens, trees over time, and clusters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingReducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.clip_segments import cuts
from vlmcompress.methods.shared.saliency import received
from vlmcompress.ops.apportion import apportion, even, rounded_up
from vlmcompress.ops.density import peak_clusters
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.groups import grouped
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import marked
from vlmcompress.ops.trees import Trees, attended_and_diverse, grow
from vlmcompress.tokens import Grid, Reduction, VisualTokens

_NEIGHBOURS = 7
"""Of which the density of a token is the mean."""


@dataclass(frozen=True)
class FlashVIDMerge(AskingReducer):
    """Keep what is attended to and diverse in each frame; merge the rest over time, then in space.

    The clip is cut into segments as for `fastvid`. Of each frame's b tokens ceil(alpha * b) are
    picked (ADTS): greedily the farthest from the picks before, distances weighed by the attention
    that a token receives in the last layer of the tower. In a segment every other token hangs on
    its most similar one of the frame before where their cosine is above `theta`, and a tree becomes
    one token at its root (TSTM), but never so many that too few are left. What is left of a frame
    is clustered by density peaks of the 7 nearest (or as many as clusters). Official code:
    Fanziyang-v/FlashVID.

    Deviations:
        A tree is the mean of its tokens. The official code divides the sum by 1 + the tokens that
        hang on the root itself, so that a chain of c tokens is c / 2 times too long:
        `average="reference"`.
        Picks are masked; with `events` the official code can pick a token twice.
        Clusters are shared out over the frames of a segment so that the counts add up, where the
        official code rounds up per frame; a frame without a cluster drops what is left of it.
        In a segment of one frame picks stay out of the clusters, where the official code has them
        in both. An image is such a segment.
        Ties of density go to the lowest index; the official code adds random noise.
    """

    name: ClassVar[str] = "flashvid-merge"
    paper: ClassVar[str] = "arXiv 2602.08024"
    summary: ClassVar[str] = "keeps what is attended to and diverse, merges the rest over time"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    on_grid: ClassVar[bool] = True

    ratio: float = 0.25
    """Share of each frame meant to be kept when no budget is given; in (0, 1]. r in the paper."""
    expansion: float = 1.25
    """What that is multiplied with, as `flashvid-prune` takes it back; 1 or more. epsilon."""
    segments: int = 8
    """Segments of a clip that has as many frames, at least; 1 or more. 4 for Qwen3-VL."""
    threshold: float = 0.9
    """Cosine of neighbouring frames below which a segment ends; -1 to 1."""
    alpha: float = 0.7
    """Share of a frame's tokens that are picked; 0 to 1."""
    theta: float = 0.8
    """Cosine above which a token hangs on one of the frame before; -1 to 1."""
    events: bool = True
    """Whether distances are weighed by the likeness to the frames of the segment, too (a plain
    product, which may be negative): as for LLaVA; False for Qwen."""
    average: Literal["tree", "reference"] = "tree"
    """What the sum of a tree is divided by: its tokens, or as in the official code."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            ratio="(0, 1]",
            expansion="[1, inf)",
            segments="[1, inf)",
            threshold="[-1, 1]",
            alpha="[0, 1]",
            theta="[-1, 1]",
        )

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """ceil(ratio * expansion * h * w) of each frame without a budget."""
        if budget is None:
            frame = grid.h * grid.w
            return grid.t * min(frame, rounded_up(self.ratio * self.expansion * frame))
        return super().keep_count(grid, budget)

    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """Picks with the bits that they came with, merged tokens in the same dtype."""
        grid, rows = tokens.grid, tokens.features.detach()
        check_finite(rows)
        found = received(self.name, tokens)
        attention = found[max(found)].view(grid.t, -1)
        frames = rows.float().view(grid.t, grid.h * grid.w, -1)
        cut = yield cuts(frames, self.threshold, self.segments)
        bounds = list(pairwise([0, *(cut.nonzero()[:, 0] + 1).tolist(), grid.t]))
        quotas = even(max(0, min(count, len(grid))), grid.t).tolist()
        picks = [rounded_up(self.alpha * quota) for quota in quotas]
        if self.events:
            likeness = [frames[a:b] @ frames[a:b].mean(dim=(0, 1)) for a, b in bounds]
            attention = attention * torch.cat(likeness)
        taken = attended_and_diverse(frames, attention, picks)
        trees = Trees.join(
            [grow(frames[a:b], ~taken[a:b], self.theta, sum(quotas[a:b])) for a, b in bounds]
        )
        sums, sizes = trees.sums(rows)
        left = trees.tops.view(taken.shape) & ~taken
        held, stand_for = yield [left.sum(dim=1), (sizes.view(left.shape) * left).sum(dim=1)]
        divisor = sizes if self.average == "tree" else 1 + trees.children
        merged = (sums / divisor.clamp(min=1)[:, None]).view(frames.shape)
        clusters = _shares(bounds, quotas, picks, held)
        into, made = torch.full((len(grid),), -1, device=rows.device), rows.clone()
        kept = marked(taken.flatten(), sum(picks))
        into[kept] = kept
        for frame, number in enumerate(clusters):
            if number:
                places = marked(left[frame], int(held[frame]))
                centres, nearest, mean = peak_clusters(
                    merged[frame, places], number, min(number, _NEIGHBOURS)
                )
                places = places + frame * left.shape[1]
                into[places] = places[centres][nearest]
                made[places[centres]] = mean.to(made.dtype)
        clustered = stand_for[torch.tensor(clusters) > 0].sum()
        return grouped(made, into[trees.root], count, sum(picks) + int(clustered))


def _shares(
    bounds: list[tuple[int, int]], quotas: list[int], picks: list[int], held: Tensor
) -> list[int]:
    """Clusters of each frame: a segment's in proportion to what is `held` [T] of its frames."""
    shares: list[int] = []
    for a, b in bounds:
        total, room = sum(quotas[a:b]) - sum(picks[a:b]), held[a:b]
        shares += apportion(total * room.double() / max(1, int(room.sum())), total, room).tolist()
    return shares
