"""FastVID: segments of a clip, the salient tokens of each frame, and merged density peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingReducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.contracts.threshold import ByThreshold
from vlmcompress.methods.shared.clip_segments import cuts
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.apportion import apportion, even
from vlmcompress.ops.density import absorb, density_peaks
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.groups import grouped
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import best, marked
from vlmcompress.ops.similarity import within
from vlmcompress.ops.suppression import leaders
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class FastVID(ByThreshold, AskingReducer):
    """Keep each frame's salient tokens and merge the rest of a segment into its density peaks.

    The clip is cut (DySeg) where neighbouring frames are less similar than `border`, and at the
    `segments` - 1 least similar transitions anyway. Of each frame the tokens of the highest
    attention stay as they are (ATS). The others of a segment are merged (DTM) into anchors, which
    are density peaks of anchor frames: every `interval`-th, counted back from the segment's last.
    Each goes into the anchor that it is most similar to. An anchor of n tokens, itself among them,
    becomes w * anchor + (1 - w) * mean, w = max(beta, 1 / (n + 1)). Code: LunarShen/FastVID.

    An image is one frame in one segment: salient tokens and merged density peaks.

    With a `threshold` nothing is salient and all frames are anchor frames: by falling density a
    peak absorbs what is within that distance, 1 - cosine, and no peak yet (ours).

    Deviations:
        A frame is described by the mean of its features, in the official code by the vision tower's
        own pooling.
        A token is merged once, into the best anchor of its segment; the official code merges it
        once for each anchor frame. A merged token is placed at its first member.
        The official code rounds down per frame. Here the counts add up: `merged` of the count goes
        to the segments by length, the rest evenly to the frames, and what anchor frames cannot hold
        to salient tokens. A segment too short for an anchor drops what is not salient.
        Ties of density go to the lowest index; the official code adds random noise.
    """

    name: ClassVar[str] = "fastvid"
    paper: ClassVar[str] = "arXiv 2503.11187"
    summary: ClassVar[str] = "keeps salient tokens, merges a segment's rest"
    needs: ClassVar[frozenset[str]] = frozenset({NEED})
    on_grid: ClassVar[bool] = True

    ratio: float = 0.1
    """Share kept of each frame when no budget is given; in (0, 1]. r in the paper."""
    segments: int = 8
    """Segments of a clip that has as many frames, at least; 1 or more. c in the paper."""
    border: float = 0.9
    """Cosine of neighbouring frames below which a segment ends; -1 to 1. tau in the paper."""
    merged: float = 0.4
    """Share of the count for merged tokens; 0 to 1. d in the paper."""
    interval: int = 4
    """Frames per anchor frame; 1 or more. p in the paper."""
    beta: float = 0.6
    """Least weight of an anchor in its merged token; 0 to 1."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            ratio="(0, 1]",
            merged="[0, 1]",
            beta="[0, 1]",
            border="[-1, 1]",
            segments="[1, inf)",
            interval="[1, inf)",
        )
        self.check_threshold(2)

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """int(ratio * h * w) of each frame without a budget, at least 1 in all."""
        if budget is None and self.threshold is None:
            return max(1, grid.t * int(self.ratio * grid.h * grid.w))
        return super().keep_count(grid, budget)

    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """Salient tokens with the bits that they came with, merged ones in the same dtype."""
        grid, rows = tokens.grid, tokens.features.detach()
        check_finite(rows)
        frame = grid.h * grid.w
        attention = saliency(tokens)
        cut = yield cuts(rows.view(grid.t, frame, -1), self.border, self.segments)
        ends = [*(cut.nonzero()[:, 0] + 1).tolist(), grid.t]
        if self.threshold is not None:
            return (yield from self._repeats(tokens.features, [frame * end for end in ends]))
        merged, salient = self._shares(ends, grid, max(0, min(count, len(grid))))
        # The token that each one goes into: itself, an anchor, or nothing.
        into = torch.full((len(grid),), -1, device=rows.device)
        for start, size in zip(range(0, len(grid), frame), salient, strict=True):
            if size:
                kept = best(attention[start : start + frame], size) + start
                into[kept] = kept
        left = [frame - size for size in salient]
        free = torch.split(marked(into < 0, sum(left)), left)
        made, members = rows.clone(), sum(salient)
        for first, end in zip([0, *ends], ends, strict=False):
            rest = torch.cat(free[first:end])
            anchors = [rest[:0]]
            for t in range(first, end):
                if merged[t]:
                    anchors.append(free[t][best(density_peaks(rows[free[t]]), merged[t])])
            anchor = torch.cat(anchors)
            if len(anchor):
                places = torch.searchsorted(rest, anchor)
                nearest, absorbed = absorb(rows[rest], places, self.beta)
                into[rest] = anchor[nearest]
                made[anchor] = absorbed.to(made.dtype)
                members += len(rest)
        return grouped(made, into, sum(merged) + sum(salient), members)

    def _repeats(self, features: Tensor, ends: list[int]) -> Asking[Reduction]:
        """The density peaks of each segment that no better one within `threshold` absorbs."""
        assert self.threshold is not None
        rows = features.detach()
        parts = torch.split(rows, [b - a for a, b in zip([0, *ends], ends, strict=False)])
        peaks = [leaders(within(part, self.threshold), density_peaks(part)) for part in parts]
        known = yield peaks
        anchors = [one.nonzero()[:, 0].to(rows.device) for one in known]
        total = sum(map(len, anchors))
        if total == len(rows):
            return Reduction.identity(features)
        made, into = rows.clone(), torch.empty(len(rows), dtype=torch.long, device=rows.device)
        for start, part, anchor in zip([0, *ends], parts, anchors, strict=False):
            nearest, absorbed = absorb(part, anchor, self.beta)
            made[anchor + start] = absorbed.to(made.dtype)
            into[start : start + len(part)] = anchor[nearest] + start
        return grouped(made, into, total, len(rows))

    def _shares(self, ends: list[int], grid: Grid, count: int) -> tuple[list[int], list[int]]:
        """How many merged and how many salient tokens each frame has."""
        frame = grid.h * grid.w
        lengths = torch.tensor([end - first for first, end in zip([0, *ends], ends, strict=False)])
        hosts = -(-lengths // self.interval)
        total = min(int(self.merged * count), int(hosts.sum()) * frame)
        merged = torch.zeros(grid.t, dtype=torch.long)
        sizes = apportion(total * lengths.double() / grid.t, total, hosts * frame)
        for end, size, host in zip(ends, sizes.tolist(), hosts.tolist(), strict=True):
            merged[end - 1 - self.interval * torch.arange(host)] = even(size, host)
        salient = apportion(even(count - total, grid.t), count - total, frame - merged)
        return merged.tolist(), salient.tolist()
