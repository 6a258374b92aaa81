"""What is kept of layers that have run, for cuts that rank in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        return layer in self._wanted(layer)

    def remember(
        self, layer: int, hidden: Tensor, embeddings: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """The input [B, Q, D] of a layer that is about to run."""
        self.inputs[layer] = hidden, *embeddings[self.kinds.names[layer]]

    def cut(self, layer: int, index: Tensor) -> None:
        """Before `layer` the tokens `index` [B, Q'] are left; forget what no cut needs any more."""
        again = self._wanted(layer)
        self.inputs = {n: tuple(take_all(x, index)) for n, x in self.inputs.items() if n in again}
        self.attended = {n: x.left(index) for n, x in self.attended.items() if n in again}
        self.calls = {}

    def _wanted(self, after: int) -> set[int]:
        """Layers in which the cuts behind `after` may rank: that just before them, or there."""
        near = {cut + step for cut in self.cuts if cut > after for step in (-1, 0, 1)}
        return {self.kinds.ranks_in(layer) for layer in near if layer < len(self.kinds.names)}
