"""Visual features that some families add again after the first decoder layers (DeepStack).

They come as one list of rows for all visual tokens of the batch, beside a mask of where those are:
both have to follow the kept tokens. Some decoders add them in a method of their own, others in the
loop over their layers; for these all features come so, and nothing is in the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmcompress.ops.gather import take_all
from vlmcompress.ops.ranking import marked
from vlmcompress.patches.sequence.cache_state import Slots
from vlmcompress.patches.sequence.placeholders import Located
from vlmcompress.tokens import Reduction

DEEPSTACK = ("visual_pos_masks", "deepstack_visual_embeds")
"""Arguments of decoders that are told to add features."""
_MASK, _FEATURES = "vision_mask", "deepstack_features"
"""Arguments of decoders that add features in their loop: [B, L, D] bool and layer -> rows."""


def added(
    kwargs: Mapping[str, Any],
    images: Sequence[Located],
    reductions: Sequence[Reduction | None],
    slots: Slots,
    count: int,
) -> dict[str, Any]:
    """The arguments `DEEPSTACK`, if the decoder was given any, for the `count` kept ones."""
    mask, features = (kwargs.get(name) for name in DEEPSTACK)
    if mask is None or features is None:
        return {}
    mask, features = follow(mask, merge(mask, features, images, reductions), slots, count)
    return dict(zip(DEEPSTACK, (mask, features), strict=True))


def in_loop(arguments: Mapping[str, Any]) -> tuple[Tensor, dict[int, Tensor]] | None:
    """The mask [B, L] and the features that a decoder adds in its loop, None for others."""
    mask, features = arguments.get(_MASK), arguments.get(_FEATURES)
    return None if mask is None or not features else (mask[..., 0], features)


def looked_at(arguments: Mapping[str, Any]) -> Tensor:
    """[B, L, D]: the embeddings with the features that are added first, for methods to look at."""
    embeds: Tensor = arguments["inputs_embeds"]
    found = in_loop(arguments)
    if found is None:
        return embeds
    mask, features = found
    return embeds.masked_scatter(mask[..., None], features[min(features)].to(embeds))


def follow_in_loop(
    arguments: Mapping[str, Any],
    images: Sequence[Located],
    reductions: Sequence[Reduction | None],
    slots: Slots,
    count: int,
) -> dict[str, Any]:
    """Those features for the `count` kept placeholders, and none for others.

    The first that are added take the place of embeddings, so they are what the method made.
    """
    found = in_loop(arguments)
    if found is None:
        return {}
    mask, features = found
    first = list(features).index(min(features))
    merged = merge(mask, list(features.values()), images, reductions, first)
    kept, rows = follow(mask, merged, slots, count)
    # The mask as well: what it says of fillers, which get no features, is that of real tokens.
    return {_MASK: kept[..., None], _FEATURES: dict(zip(features, rows, strict=True))}


def follow(
    mask: Tensor, features: Sequence[Tensor], slots: Slots, count: int
) -> tuple[Tensor, list[Tensor]]:
    """The mask and the feature rows of the kept slots.

    Args:
        mask: [B, L] bool: which columns are placeholders.
        features: each [mask.sum(), D], row after row of the batch.
        slots: [B, K] columns; fillers and what is masked get nothing.
        count: how many placeholders are among the others, so that nothing waits.
    """
    kept, numbers = take_all([mask, _numbers(mask)], slots.index)
    if slots.valid is not None:
        kept = kept & slots.valid.to(kept.device)
    rows = numbers.flatten()[marked(kept.flatten(), count)]
    return kept, [feature[rows.to(feature.device)] for feature in features]


def merge(
    mask: Tensor,
    features: Sequence[Tensor],
    images: Sequence[Located],
    reductions: Sequence[Reduction | None],
    first: int | None = None,
) -> list[Tensor]:
    """Give each merged token the mean of its members' features.

    Args:
        mask: [B, L] bool: which columns are placeholders.
        features: each [mask.sum(), D], row after row of the batch.
        images: whose tokens were merged,
        reductions: and how; None for those that were not.
        first: which of `features` a method has looked at and made new ones of: those are taken.
    """
    if all(reduction is None for reduction in reductions):
        return list(features)
    merged = [feature.clone() for feature in features]
    numbers = _numbers(mask)
    for image, reduction in zip(images, reductions, strict=True):
        if reduction is None:
            continue
        rows = numbers[image.row, image.columns.to(mask.device)]
        for number, (feature, new) in enumerate(zip(features, merged, strict=True)):
            own = number == first
            made = reduction.features if own else group_means(feature[rows], reduction)
            new[rows[reduction.anchors]] = made.to(new)
    return merged


def group_means(values: Tensor, reduction: Reduction) -> Tensor:
    """[N, D] of the tokens of an image -> [K, D]: means over the members of each group."""
    sizes = reduction.offsets.diff()
    group = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    sums = values.new_zeros(len(sizes), values.shape[1], dtype=torch.float32)
    sums.index_add_(0, group, values[reduction.members].float())
    return (sums / sizes[:, None]).to(values.dtype)


def _numbers(mask: Tensor) -> Tensor:
    """[B, L] int64: which feature row belongs to each visual column."""
    return (mask.flatten().cumsum(0) - 1).view_as(mask)
