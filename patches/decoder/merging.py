"""Asking a method that merges between decoder layers, and writing what it made in its place."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.contracts.decoder import DecoderReducer
from vlmcompress.patches.decoder.cut_context import CutContext
from vlmcompress.patches.decoder.selection import checked_reduction
from vlmcompress.patches.sequence.spans import Span
from vlmcompress.tokens import Reduction


def merged(context: CutContext, method: DecoderReducer) -> tuple[list[Tensor], Tensor]:
    """Per image, ascending places of the groups' smallest members among the tokens that are left.

    And the hidden states [B, Q, ...] with those of each group in its place.

    Raises:
        VLMCompressError: the method gave another kind of thing, or another number.
    """
    hidden, kept = context.hidden.clone(), []
    for span in context.stages.spans:
        places, found = _groups(context, method, span)
        kept.append(places.to(span.slots.device))
        if found is not None:
            slots = span.slots.to(hidden.device)[places]
            states = found.features.view(-1, *hidden.shape[2:]).to(hidden.dtype)
            hidden[span.row, slots] = states
            span.trace.merges[context.layer] = _of_image(found, span)
    return kept, hidden


def _groups(
    context: CutContext, method: DecoderReducer, span: Span
) -> tuple[Tensor, Reduction | None]:
    """Places that stay, and what stands there; no reduction where nothing changes."""
    alive, schedule = len(span.slots), span.trace.plan.schedule
    count = min(schedule.get(context.layer, alive), alive)
    if count == alive:
        return torch.arange(alive, device=context.hidden.device), None
    if count < 1:
        raise UnsupportedCallError(f"{method.name} merges to 1 token of an image or more")
    rows = context.hidden[span.row, span.slots.to(context.hidden.device)].detach().flatten(1)
    grids = [grid for grid, _ in span.trace.plan.parts]
    found = method.merge(rows, grids, count)
    found = checked_reduction(method.name, found, rows, count, context.stages.checks)
    return found.anchors, found


def _of_image(found: Reduction, span: Span) -> Reduction:
    """The same with raster indices of the image as members."""
    index = span.index.to(found.members.device)
    return Reduction(found.features[:0], index[found.members], found.offsets)
