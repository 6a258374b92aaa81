"""VidCom2: more tokens for the frames that stand out, in a frame for the tokens that do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingSelector
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.methods.contracts.threshold import ByThreshold, staying
from vlmcompress.ops.apportion import apportion
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import best
from vlmcompress.ops.select import top_k
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import VisualTokens

# Five scales of the Gaussian kernel, as in the official code.
_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class VidCom2(ByThreshold, AskingSelector):
    """Keep the tokens least like the mean of their frame and of the clip.

    Likeness is a sum of Gaussian kernels of unit features and their mean. The less like the clip
    the tokens of a frame are on average, the larger its share p of a softmax over the frames; its
    budget is count / T * (1 + p - 1 / T). The frames are the temporal steps of the grid. Official
    code: xuyang-liu16/VidCom2.

    An image is one frame: likeness to the clip and to the frame are the same, and the tokens least
    like the mean stay.

    With a `threshold` frames have no budgets: a token stays if it is farther than that from its
    frame and clip, 1 - the mean of its ten kernels, which is 0 for the mean itself and below 1
    (ours).

    Deviations:
        Frame budgets are rounded so that they add up to the count, with one token or more for each
        frame where the count allows it; what a full frame cannot take goes to the others. The
        official code rounds each by itself.
    """

    name: ClassVar[str] = "vidcom2"
    paper: ClassVar[str] = "arXiv 2505.14454"
    summary: ClassVar[str] = "keeps what is unlike its frame and clip"
    on_grid: ClassVar[bool] = True

    ratio: float = 0.25
    """Share kept when no budget is given; in (0, 1]."""
    temperature: float = 0.01
    """Of the softmax over frames, 1e-6 or more. The larger, the more even the budgets."""
    channels: float = 0.5
    """Share of the feature channels that is looked at, those of the lowest variance, as in the
    official code; in (0, 1]."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", channels="(0, 1]", temperature=TEMPERATURE)
        self.check_threshold(1)

    def selecting(self, tokens: VisualTokens, count: int) -> Asking[Tensor]:
        """[count] int64, ascending."""
        grid = tokens.grid
        frame = grid.h * grid.w
        count = max(0, min(count, len(grid)))
        with torch.autocast(tokens.features.device.type, enabled=False):
            unit = unit_rows(self._steady(tokens.features)).view(grid.t, frame, -1)
            in_clip = _likeness(unit, unit.mean(dim=(0, 1)))
            in_frame = _likeness(unit, unit.mean(dim=1, keepdim=True))
            share = (-in_clip.mean(dim=1) / self.temperature).softmax(dim=0)
            quotas = count / grid.t * (1 + share - 1 / grid.t)
        alike = in_clip + in_frame
        if self.threshold is not None:
            apart = 1 - alike / (2 * len(_SCALES))
            return (yield from staying((apart > self.threshold).flatten()))
        most = torch.full((grid.t,), frame)
        sizes = apportion((yield quotas), count, most, least=int(count >= grid.t)).tolist()
        unlike = -alike
        kept = [best(unlike[t], size) + t * frame for t, size in enumerate(sizes) if size]
        return torch.cat(kept) if kept else most[:0].to(unlike.device)

    def _steady(self, features: Tensor) -> Tensor:
        """The channels of the lowest variance over all tokens; ties to the first."""
        features = features.detach().float()
        width = features.shape[-1]
        variance = features.var(dim=0, correction=0)
        # A channel that is NaN or infinite has to be noticed, not left out.
        chosen = top_k(-variance.nan_to_num(nan=-1.0), max(1, int(width * self.channels)))
        return features[:, chosen]


def _likeness(unit: Tensor, mean: Tensor) -> Tensor:
    """[T, F] sum of Gaussian kernels of the distances to `mean`."""
    apart = (unit - mean).square().sum(dim=-1)
    return torch.stack([(-apart / (2 * scale)).exp() for scale in _SCALES]).sum(dim=0)
