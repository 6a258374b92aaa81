"""Where the visual tokens of an image lie while layers drop some of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmcompress.patches.sequence.call_trace import ImageTrace
from vlmcompress.patches.sequence.separators import Closing, Separators


@dataclass
class Span:
    """The visual tokens of one image in one row of the batch, as far as they survive."""

    row: int
    slots: Tensor
    """[V] int64: slots of the chunk at the current stage."""
    index: Tensor
    """[V] int64: raster indices."""
    separators: Separators
    """At slots of the current stage."""
    trace: ImageTrace
    reach: int = 0
    """Columns from its first token to the last of the prompt."""

    def closing(self, keep: Tensor, places: Tensor) -> Closing:
        """Dropping all but the tokens at `places`; `keep` [B, Q] bool of the current stage."""
        return Closing(
            keep[self.row],
            self.slots,
            self.slots[places],
            self.index[places],
            self.separators,
            len(self.trace.layout),
        )

    def move(self, slot: Tensor, places: Tensor) -> None:
        """Keep the tokens at `places`; `slot` [Q] gives every old slot of the row its new one."""
        self.slots, self.index = slot[self.slots[places]], self.index[places]
        self.separators = self.separators.move(slot)
