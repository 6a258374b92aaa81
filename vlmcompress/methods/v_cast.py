"""V-CAST: more tokens for the frames where the clip turns, in a frame for those that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingSelector
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.ops.apportion import apportion
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import best
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import VisualTokens

_EPSILON = 1e-6


@dataclass(frozen=True)
class VCast(AskingSelector):
    """Share the budget by how sharply the clip bends at each frame; keep outliers and long tokens.

    A frame is the direction of the mean of its tokens. Its curvature is 1 - the cosine of the step
    that leads to it and the step that leads on, 1 for the first and the last frame. Every frame
    gets one token, the rest goes by the softmax of curvature / temperature. In a frame those stay
    that rank highest by 1 - the cosine to the frame's direction, plus their norm, scaled to 0 to 1
    over the frame. Frames are the temporal steps of the grid. Official code: xinyouu/V-CAST.

    Deviations:
        Where the counts are rounded: the nearest whole numbers that add up; what a full frame
        cannot take goes to the others. The official code rounds down and hands out the rest by
        fractions, and can keep fewer.
        An image is one frame (the official code leaves images whole), and a budget of fewer tokens
        than frames is shared out without the one for each.
    """

    name: ClassVar[str] = "v-cast"
    paper: ClassVar[str] = "arXiv 2603.27650"
    summary: ClassVar[str] = "keeps outliers, more of them where a clip turns"
    on_grid: ClassVar[bool] = True

    ratio: float = 0.25
    """Share kept when no budget is given; in (0, 1]."""
    temperature: float = 0.7
    """Of the softmax over frames, 1e-6 or more. The larger, the more even the budgets."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", temperature=TEMPERATURE)

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending."""
        grid = tokens.grid
        frame, count = grid.h * grid.w, max(0, min(count, len(grid)))
        with torch.autocast(tokens.features.device.type, enabled=False):
            unit = unit_rows(tokens.features).view(grid.t, frame, -1)
            rows = tokens.features.detach().float().view(grid.t, frame, -1)
            ways = unit_rows(rows.mean(dim=1))
            apart = 1 - (unit * ways[:, None]).sum(dim=-1)
            length = torch.linalg.vector_norm(rows, dim=-1)
            low, high = length.amin(1, keepdim=True), length.amax(1, keepdim=True)
            score = apart + (length - low) / (high - low + _EPSILON)
            least = int(count >= grid.t)
            share = (_curvature(ways) / self.temperature).softmax(dim=0)
            quotas = least + share * (count - least * grid.t)
        most = torch.full((grid.t,), frame)
        sizes = apportion((yield quotas), count, most, least=least).tolist()
        kept = [best(score[t], size) + t * frame for t, size in enumerate(sizes) if size]
        return torch.cat(kept) if kept else most[:0].to(score.device)


def _curvature(ways: Tensor) -> Tensor:
    """[T] of the directions [T, D] of the frames; a step that leads nowhere turns by 1."""
    steps = unit_rows(ways.diff(dim=0))
    found = torch.ones_like(ways[:, 0])
    found[1:-1] -= (steps[:-1] * steps[1:]).sum(dim=-1)
    return found
