"""What a prefill adds to attention logits, where the method wants it (`AttentionBias`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.sequence.attention_bias import TokenBias, frequencies_of
from vlmcompress.patches.sequence.placeholders import Located
from vlmcompress.patches.sequence.stage_layout import StageLayout
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.tokens import Reduction


def bias_of(
    installed: Installed,
    stages: StageLayout,
    told: Sequence[tuple[Located, Tensor, Reduction | None, Survivors | None]],
    positions: Tensor,
) -> TokenBias | None:
    """The bias of a prefill; where the method wants none that of earlier turns, mostly None.

    Args:
        installed: whose method it is.
        stages: of the prefill; their bias is that of earlier turns.
        told: of each image the raster indices that enter the decoder, the groups if there were
            any, and what a method before the projector left.
        positions: [B or 1, Q] or [axes, B or 1, Q], of the kept slots of the chunk.
    """
    pipeline = installed.planner.pipeline
    wanted, device = pipeline.attention_bias, positions.device
    if wanted is None:
        return stages.bias
    shape = stages.batch, 2, stages.past + stages.virtual_width
    sizes = torch.zeros(shape, device=device)
    if stages.bias is not None:
        known = stages.bias.sizes.to(device)
        sizes[:, :, : known.shape[2]] = known
    lost = torch.zeros(stages.batch, 1, dtype=torch.bool)
    for image, own, reduction, left in told:
        lost[image.row] |= len(own) < len(image.open)
        if wanted.sizes and len(own):
            columns = image.columns.to(device)[own] + stages.past
            sizes[image.row, 0, columns] = torch.tensor(len(image.open) / len(own)).log().item()
            sizes[image.row, 1, columns] = _sizes(len(image.layout), own, reduction, left).log()
    if not wanted.distance:
        return TokenBias(sizes)
    one = positions if positions.dim() == 2 else positions[-3]  # the temporal axis of M-RoPE
    prompt = stages.columns.index < stages.past + stages.virtual_width - stages.generated
    return TokenBias(
        sizes,
        lost.to(device) & prompt,
        one.expand(stages.batch, -1),
        frequencies_of(installed.lm, stages.kinds, pipeline.name),
    )


def _sizes(
    total: int, kept: Tensor, reduction: Reduction | None, survivors: Survivors | None
) -> Tensor:
    """[K] float32: of how many tokens of the image each kept one is made."""
    each = torch.ones(total, device=kept.device)
    if survivors is not None:
        each[survivors.alive.to(kept.device)] = survivors.sizes.to(kept.device)
    if reduction is None:
        return each[kept]
    sums = each[reduction.members].cumsum(0)
    ends = torch.cat([sums.new_zeros(1), sums])[reduction.offsets]
    return ends.diff()
