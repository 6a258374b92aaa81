"""Efficient Video Sampling: the tokens that changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingSelector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.contracts.threshold import ByThreshold, staying
from vlmcompress.methods.stride import Stride
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.select import top_k
from vlmcompress.ops.similarity import changes
from vlmcompress.tokens import Grid, VisualTokens


@dataclass(frozen=True)
class EVS(ByThreshold, AskingSelector):
    """Keep the first frame and, of the others, the tokens least like their predecessor.

    Dissimilarity is 1 - cosine between a token and the one at its place in the frame before (of a
    model that merges frames, in the temporal step before), ranked over the whole clip. Without a
    budget the count is int(ratio * N), but never less than one frame, as in vLLM.

    A budget below one frame, and so any budget of an image, finds the tokens of the first frame
    equally new: it takes them evenly spaced, as `stride` does (ours).

    With a `threshold` a token of a later frame stays if it changed by more than that, as in the
    patches that people put into vLLM; the first frame, and so an image, stays whole.

    Deviations:
        The paper compares pixels. As in vLLM, features are compared here: pixels do not reach this
        stage.
        A change is computed from the difference of the two tokens, so that a still picture changes
        by exactly 0; ties go to the earliest token.
    """

    name: ClassVar[str] = "evs"
    paper: ClassVar[str] = "arXiv 2510.14624"
    summary: ClassVar[str] = "keeps what changes between frames"
    on_grid: ClassVar[bool] = True

    ratio: float = 0.25
    """Share kept when no budget is given; in (0, 1]. The paper's pruning rate is 1 - ratio."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")
        self.check_threshold(2)

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """int(ratio * N) without a budget, at least one frame."""
        if budget is None and self.threshold is None:
            return max(grid.h * grid.w, int(self.ratio * len(grid)))
        return super().keep_count(grid, budget)

    def goes_by(self, grid: Grid) -> bool:
        """Where nothing can have changed: in an image."""
        return grid.t == 1 and self.threshold is None

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending."""
        grid, features = tokens.grid, tokens.features
        frame = grid.h * grid.w
        count = max(0, min(count, len(grid)))
        changed = changes(features, frame)
        if self.threshold is not None:
            whole = torch.ones(frame, dtype=torch.bool, device=features.device)
            return (yield from staying(torch.cat([whole, changed > self.threshold])))
        if count <= frame:
            first = VisualTokens(features[:frame], Grid(1, grid.h, grid.w))
            return Stride().select(first, count)
        first_frame = torch.arange(frame, device=features.device)
        return torch.cat([first_frame, top_k(changed, count - frame) + frame])
