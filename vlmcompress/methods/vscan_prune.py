"""VScan, inside the decoder: one cut in the middle, by attention of the last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.schedules import one_cut


@dataclass(frozen=True)
class VScanPrune(DecoderMethod):
    """Before layer L / 2 keep what the last token attends to most in the layer about to run.

    Softmax over all keys, mean over heads. Behind `vscan-merge` a third of its tokens stay: for a
    mean of B over layers 1.5 B enter the decoder and .5 B its second half. Official code: VScan in
    Tencent/SelfEvolvingAgent.

    Deviations: positions are kept unless the caller renumbers; the official code for LLaVA
    renumbers. With rotary embedding on every model, as in the paper; the official code for Qwen has
    it commented out (`rope=False`), and no mask.
    """

    name: ClassVar[str] = "vscan-prune"
    paper: ClassVar[str] = "arXiv 2505.22654"
    summary: ClassVar[str] = "drops what the last token attends to least, in mid-decoder"

    k: int | None = None
    """The first layer that runs on fewer tokens, 1 to L - 1; None for L // 2."""
    ratio: float = 2 / 3
    """Share dropped when no budget is given; in [0, 1)."""
    rope: bool = True
    """Whether queries and keys are compared with their rotary embedding."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="[0, 1)")
        if self.k is not None and self.k < 1:
            raise VLMCompressError(f"vscan-prune: k must be 1 or more, got {self.k}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: keep}, or {} where that keeps all."""
        k = max(1, layers // 2) if self.k is None else self.k
        return one_cut("vscan-prune", k, layers, tokens, budget, dropped=self.ratio)

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the last token in the layer about to run, mean over heads."""
        return view.attention(rows="last", rope=self.rope).mean(dim=(0, 1))[view.visual]
