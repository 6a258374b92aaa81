"""Visual tokens that wait in front of the decoder until the layer that they enter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlmcompress.errors import CompositionError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.ops.gather import take
from vlmcompress.patches.sequence.cache_state import Slots
from vlmcompress.patches.sequence.packing import pack, slot_of

if TYPE_CHECKING:
    from vlmcompress.patches.sequence.stage_layout import StageLayout


def check_late_entry(name: str, family: str, adds_features: bool, positions: str) -> None:
    """Refuse what nobody has said the meaning of.

    Args:
        name: of the method.
        family: of the model.
        adds_features: whether its first layers add visual features (DeepStack).
        positions: "keep" or "renumber".

    Raises:
        UnsupportedModelError: they do.
        CompositionError: positions are renumbered.
    """
    if adds_features:
        raise UnsupportedModelError(
            f"{name} keeps visual tokens out of the first decoder layers, where {family} adds "
            "features to them (DeepStack): use a projector-stage method"
        )
    if positions != "keep":
        raise CompositionError(
            f"{name} lets visual tokens in at their places in the prompt: give positions='keep', "
            f"got {positions!r}"
        )


class LateEntry:
    """Of one forward.

    Spans keep the slots of the whole chunk, in front of layer 0: nothing is ranked or dropped.
    """

    def __init__(self, stages: StageLayout) -> None:
        self._stages = stages
        self._states: Tensor | None = None
        """[B, Q, ...] of the whole chunk: waiting tokens as they came, others as they are now."""
        self._opened: Tensor
        """[B, Q] bool: what of it are tokens."""
        self._inside: Tensor
        """[B, Q] bool: what of it the last layer held ..."""
        self._slot: Tensor
        """... and at which of its slots."""

    def before(self, layer: int, hidden: Tensor) -> Tensor:
        """[B, Q', ...]: what enters `layer`, text and the images whose layer has come.

        Args:
            layer: of the schedule of any image; layer 0 comes first.
            hidden: [B, Q, ...] what left the layer before; all of the chunk before layer 0.

        Raises:
            UnsupportedCallError: layer 0 would have nothing of a prompt.
        """
        stages, states = self._stages, self._together(hidden)
        self._inside, counts = self._holds(layer)
        size = max(counts)
        index, valid = pack(self._inside, size, ragged=min(counts) < size)
        self._slot = slot_of(self._inside, size).clamp_min(0)
        self._states = states
        stages.enter(layer, Slots(index, valid))
        return take(states, index)

    def _together(self, hidden: Tensor) -> Tensor:
        if self._states is None:
            opened = self._stages.open()
            index = self._stages.columns.index
            self._opened = torch.ones_like(index, dtype=torch.bool) if opened is None else opened
            return hidden
        inside = self._inside.to(hidden.device)
        inside = inside.view(*inside.shape, *(1 for _ in hidden.shape[2:]))
        return torch.where(inside, take(hidden, self._slot), self._states.to(hidden))

    def _holds(self, layer: int) -> tuple[Tensor, list[int]]:
        """[B, Q] bool: what `layer` holds, and how much of each row; noted for the report."""
        stages, inside = self._stages, self._opened.clone()
        counts = list(stages.counts)
        for span in stages.spans:
            schedule = span.trace.plan.schedule
            here = layer >= max(schedule, default=0)
            if not here:
                for slots in (span.slots, span.separators.at):
                    inside[span.row, slots] = False
                    counts[span.row] -= len(slots)
            if layer in schedule:
                span.trace.cuts[layer] = span.index if here else span.index[:0]
                span.trace.separators[layer] = len(span.separators) if here else 0
        for row, (left, whole) in enumerate(zip(counts, stages.counts, strict=True)):
            if whole and not left:
                raise UnsupportedCallError(
                    f"prompt {row} has no text, and its visual tokens enter after decoder layer "
                    f"{layer}: add text, or let them in at layer 0"
                )
        return inside, counts
