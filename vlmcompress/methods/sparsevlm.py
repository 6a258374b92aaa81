"""SparseVLM: cuts at a few depths, by attention of the text tokens that speak of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.calibrated_schedules import published
from vlmcompress.ops.text_prior import text_raters

_CUTS, _OF = (3, 7, 16), (32, 576)
_LEFT = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}


@dataclass(frozen=True)
class SparseVLM(DecoderMethod):
    """After layers 2, 6 and 15 of 32 keep what the text raters attended to most in that layer.

    Raters are the text tokens that the visual tokens are more like than the mean text token. The
    cuts are at the same shares of other depths. A budget scales the counts of the setting. Official
    code: Gumpest/SparseVLMs.

    Deviations:
        Dropped tokens are not merged into a few new ones ("recycling"): the decoder stage drops.
        Counts are those of the code; the rank of the attention matrix, from which the paper takes
        them, is not computed there either.
        Raters are found at each cut from what is about to enter the layer; the code finds them once
        from the decoder's input, which a decoder method does not see.
        Where no text token is above the mean all are raters; the code then ranks nothing.
        The budget is the true mean; "192", "128" and "64" are 203, 141 and 79 by it.
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "arXiv 2410.04417"
    summary: ClassVar[str] = "drops at several depths what text about the picture attends to least"

    setting: Literal[192, 128, 64] = 192
    """The published counts, of 576 tokens, that no budget means and a budget scales."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{layer: tokens left}, without cuts that change nothing."""
        counts = dict(zip(_CUTS, _LEFT[self.setting], strict=True))
        return published("sparsevlm", counts, _OF, layers, tokens, budget, earlier="adaptinfer")

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the raters in the layer that just ran, mean over heads and raters."""
        raters = text_raters(view.hidden[view.visual], view.hidden[view.text])
        # Rows of others become 0: an index would have to ask the device how many raters there are.
        rows = view.attention(rows="text", of="previous") * raters[:, None]
        return rows.mean(dim=(0, 1))[view.visual] * (len(raters) / raters.sum())
