"""FlashVID, inside the decoder: one late cut, by attention of the last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.schedules import one_cut
from vlmcompress.ops.apportion import rounded_up


@dataclass(frozen=True)
class FlashVIDPrune(DecoderMethod):
    """Before layer k keep what the last token attends to most in layer k - 1, mean over heads.

    Behind `flashvid-merge`, which keeps a quarter more than its share: with the defaults of the
    paper, layer 20 of 28 and 30 % kept, the mean over layers is then the share. Official code:
    Fanziyang-v/FlashVID.

    Deviations: in decoders of other depths the cut is at the same share of the depth (ours); the
    official code for Qwen3-VL cuts before layer 28 of 36 and keeps 10 % (`k=28, keep=0.1`).
    """

    name: ClassVar[str] = "flashvid-prune"
    paper: ClassVar[str] = "arXiv 2602.08024"
    summary: ClassVar[str] = "drops what the last token attends to least, late in the decoder"

    k: int | None = None
    """The first layer that runs on fewer tokens, 1 to L - 1; None for 5/7 of the depth."""
    keep_ratio: float = 0.3
    """Share kept when no budget is given; in (0, 1]."""

    def __post_init__(self) -> None:
        check_fields(self, keep_ratio="(0, 1]")
        if self.k is not None and self.k < 1:
            raise VLMCompressError(f"flashvid-prune: k must be 1 or more, got {self.k}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: ceil(keep_ratio * tokens)} without a budget; {} where that keeps all."""
        k = max(1, round(layers * 5 / 7)) if self.k is None else self.k
        k = min(k, layers - 1) if self.k is None else k
        kept = rounded_up(self.keep_ratio * tokens) / max(tokens, 1)
        return one_cut("flashvid-prune", k, layers, tokens, budget, dropped=1 - kept)

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the last token in the layer before the cut, mean over heads."""
        return view.attention(rows="last", of="previous").mean(dim=(0, 1))[view.visual]
