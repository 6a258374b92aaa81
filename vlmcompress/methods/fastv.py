"""FastV: one cut inside the decoder, by attention of the last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.schedules import one_cut


@dataclass(frozen=True)
class FastV(DecoderMethod):
    """Before layer k drop the visual tokens that the last token attends to least in layer k - 1.

    Layers 0 to k-1 see all N tokens, layers k to L-1 `keep` of them: round(N * (1 - ratio)), or for
    a budget the whole number nearest to (L * budget - k * N) / (L - k). Kept tokens keep their
    positions. Official code: pkunlp-icler/FastV.

    Deviations: the paper speaks of attention received from all tokens; every official variant uses
    the last token only, and so does this.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "arXiv 2403.06764"
    summary: ClassVar[str] = "drops what the last token attends to least, before layer k"

    k: int = 2
    """The first layer that runs on fewer tokens, 1 to L - 1."""
    ratio: float = 0.5
    """Share dropped when no budget is given; in [0, 1)."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if self.k < 1:
            raise VLMCompressError(f"fastv: k must be 1 or more, got {self.k}")
        if not 0 <= self.ratio < 1:
            raise VLMCompressError(f"fastv: ratio must be at least 0 and below 1, got {self.ratio}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: keep}, or {} where that keeps all."""
        return one_cut("fastv", self.k, layers, tokens, budget, dropped=self.ratio)

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the last token in the layer before the cut, mean over heads."""
        return view.attention(rows="last", of="previous").mean(dim=(0, 1))[view.visual]
