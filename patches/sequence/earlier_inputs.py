"""What is kept of layers that have run, for cuts that rank in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from vlmcompress.ops.gather import take_all
from vlmcompress.patches.sequence.attended import Attended
from vlmcompress.patches.sequence.attention_masks import LayerKinds


@dataclass
class EarlierInputs:
    """Of one forward, always of the tokens of the current stage."""

    kinds: LayerKinds
    cuts: tuple[int, ...]
    """Layers before which tokens are dropped."""
    inputs: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    """Layer -> what entered it: hidden states, cos and sin."""
    attended: dict[int, Attended] = field(default_factory=dict)
    """Layer -> what it attended with, where layers are watched."""
    calls: dict[int, tuple[Tensor, Mapping[str, Any]]] = field(default_factory=dict)
    """Layer -> hidden states and all other arguments, of those that ran since the last cut."""

    def wants(self, layer: int) -> bool:
        """Whether a later cut ranks in a layer that is about to run."""
        return self._until.get(layer, 0) > layer

    def remember(
        self, layer: int, hidden: Tensor, embeddings: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """The input [B, Q, D] of a layer that is about to run."""
        self.inputs[layer] = hidden, *embeddings[self.kinds.names[layer]]

    def cut(self, layer: int, index: Tensor) -> None:
        """Before `layer` the tokens `index` [B, Q'] are left; forget what no cut needs any more."""
        until = self._until
        self.inputs = {
            n: tuple(take_all(x, index)) for n, x in self.inputs.items() if until[n] > layer
        }
        self.attended = {n: x.left(index) for n, x in self.attended.items() if until[n] > layer}
        self.calls = {}

    @cached_property
    def _until(self) -> dict[int, int]:
        """Layer -> the last cut that may rank in it: in the layer just before the cut, or there."""
        return {
            self.kinds.ranks_in(cut + step): cut
            for cut in self.cuts
            for step in (-1, 0, 1)
            if cut + step < len(self.kinds.names)
        }
