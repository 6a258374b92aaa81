"""VisionZip: dominant tokens, and the rest condensed into contextual ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vlmcompress.methods.contracts.method import Reducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.per_frame import frame_quotas
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.finite import check_finite
from vlmcompress.ops.groups import grouped
from vlmcompress.ops.ranking import best, marked
from vlmcompress.ops.similarity import unit_rows
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class VisionZip(Reducer):
    """Keep what CLS attends to as it is; merge the other tokens by the similarity of their keys.

    Contextual tokens grow around targets, every floor(R / C)-th of the R tokens that are not
    dominant. Each other one of them joins its most similar target (cosine of keys). A contextual
    token is the average of its target and the mean of those that joined. Every token stands in a
    group. Official code: dvlab-research/VisionZip.

    Deviations:
        Tokens are merged behind the projector, the official code merges before it.
        The official code adds target and mean. Here it is half of that, the average, so that the
        token is as long as the others that the decoder sees.
        Keys are compared with all heads side by side, where the official code averages them over
        heads; features stand in where the model gives no keys (ours).
        The CLS token, which the official code keeps in addition, never enters the decoder.
        Where there is no CLS: attention received from all tokens at the deepest layer, as the paper
        does for towers without CLS.
        The frames of a clip are taken one by one, with even shares of the budget; with fewer than
        two tokens for each (ours) they are one pool.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "arXiv 2412.04467"
    summary: ClassVar[str] = "keeps what CLS attends to, and merges the rest"
    needs: ClassVar[frozenset[str]] = frozenset({NEED, "keys|"})

    ratio: float = 0.111
    """Share kept when no budget is given; in (0, 1]. 64 of 576; the paper also has 128 and 192."""
    contextual: float = 0.15625
    """Share of the budget for contextual tokens, at least one; in (0, 1]. 10 of 64, 20 of 128 and
    30 of 192, as in the paper for LLaVA-1.5."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", contextual="(0, 1]")

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` tokens; a token alone in its group has the bits that it came with."""
        grid, features = tokens.grid, tokens.features
        check_finite(features)
        attention = saliency(tokens)
        keys = features if tokens.keys is None else tokens.keys.to(features.device)
        unit = unit_rows(keys, "features" if tokens.keys is None else "keys")
        if count < 2 * grid.t:
            grid = Grid(1, 1, len(grid))
        if count <= 0:
            nothing = torch.zeros(1, dtype=torch.long, device=features.device)
            return Reduction(features[:0], nothing[:0], nothing)
        # The token that each one goes into: a target, or itself.
        into = torch.arange(len(grid), device=features.device)
        merged = features.clone()
        with torch.autocast(features.device.type, enabled=False):
            for own, quota in frame_quotas(grid, count):
                contextual = max(1, round(self.contextual * quota))
                targets, nearest, joining = _assigned(
                    attention[own], unit[own], quota - contextual, contextual
                )
                into[own][joining] = targets[nearest] + own.start
                merged[own][targets] = _merged(features[own], targets, nearest, joining)
        return grouped(merged, into, min(count, len(grid)), len(grid))


def _assigned(
    attention: Tensor, unit: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets [C], joining tokens [M], and in the middle [M] which target each of them joins."""
    rest = torch.ones_like(attention, dtype=torch.bool)
    if dominant:
        rest[best(attention, dominant)] = False
    left = marked(rest, len(rest) - dominant)
    targets = left[:: len(left) // contextual][:contextual]
    rest[targets] = False
    joining = marked(rest, len(left) - contextual)
    return targets, (unit[joining] @ unit[targets].T).argmax(1), joining


def _merged(features: Tensor, targets: Tensor, nearest: Tensor, joining: Tensor) -> Tensor:
    """[C, D] in the dtype of `features`: the average of each target and the mean of its group."""
    member = one_hot(nearest, len(targets)).T.float()
    sizes = member.sum(1, keepdim=True)
    means = member @ features[joining].float() / sizes.clamp(min=1)
    average = (features[targets].float() + means) / 2
    return torch.where(sizes > 0, average.to(features.dtype), features[targets])
