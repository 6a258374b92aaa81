"""Asking a decoder-stage method which tokens survive a cut, and not believing all that it says."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.patches.decoder.cut_context import CutContext
from vlmcompress.patches.decoder.layer_view import DecoderLayerView
from vlmcompress.patches.sequence.spans import Span


def ranked(context: CutContext, method: DecoderMethod) -> list[Tensor]:
    """Per image, ascending places of the tokens to keep among those that survive.

    What only the device knows of them is left to `StageLayout.checks`; the first places stand in
    for wrong ones until then, so that the forward can go on.

    Raises:
        VLMCompressError: the method gave another kind of thing, or another number.
    """
    return [_kept(context, method, span) for span in context.stages.spans]


def _kept(context: CutContext, method: DecoderMethod, span: Span) -> Tensor:
    alive, schedule = len(span.slots), span.trace.plan.schedule
    if context.layer not in schedule:
        return torch.arange(alive, device=span.slots.device)
    count = min(schedule[context.layer], alive)
    kept = method.keep(DecoderLayerView(context, span), count)

    def wrong(given: object) -> VLMCompressError:
        number = "" if method.adaptive else f"{count} "
        return VLMCompressError(
            f"{method.name}: keep must give {number}ascending places of 0 to {alive - 1} (int64) "
            f"before layer {context.layer}, got {given!r}"
        )

    places = isinstance(kept, Tensor) and kept.dtype == torch.int64 and kept.dim() == 1
    if not places or not (len(kept) <= alive if method.adaptive else len(kept) == count):
        context.stages.checks.settle()  # a mistake of an earlier cut comes first
        raise wrong(kept.tolist() if isinstance(kept, Tensor) else kept)
    kept = kept.to(span.slots.device)
    good = (kept.diff() > 0).all() & (kept[:1] >= 0).all() & (kept[-1:] < alive).all()
    context.stages.checks.expect(good, lambda: wrong(kept.tolist()))
    return kept.where(good, torch.arange(len(kept), device=kept.device))
