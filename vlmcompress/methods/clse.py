"""CLSE: cuts at three depths, the first by what a layer does to high frequencies of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.methods.shared.calibrated_schedules import published
from vlmcompress.ops.spectrum import evolution, high_frequency

_CUTS, _OF = (1, 11, 21), (32, 576)
_LEFT = {192: (330, 210, 62), 128: (220, 140, 41), 64: (110, 70, 20)}


@dataclass(frozen=True)
class CLSE(DecoderMethod):
    """Before layers 1, 11 and 21 of 32 keep what the last token attends to in the layer before.

    At the first cut, where the tokens still fill their grid, attention is multiplied by how
    unusually much the layer before changed their high frequencies (`vlmcompress.ops.spectrum`),
    from what entered it to what left it. At the others the grid is broken, and attention decides.
    The cuts are at the same shares of other depths. A budget scales the counts of the setting.
    Official code: zjubinchen/CLSE, and its port in CodeChildCZJ/PriorTR.

    Deviations:
        The official code cuts the KV cache of earlier layers to the kept tokens, too; here they
        keep what they cached.
        It compares with the input of layer 0, here it is that of the layer before the cut: the same
        at 32 layers.
        Frames of a clip are filtered one by one as in the code; so is every grid of an image that
        is laid out as several, where the code has one. Changes are compared over all of them.
        Where a method before the decoder left holes in the grid, attention alone decides.
        The budget is the true mean; "192", "128" and "64" are 208, 145 and 81 by it.
    """

    name: ClassVar[str] = "clse"
    paper: ClassVar[str] = "arXiv 2606.24165"
    summary: ClassVar[str] = "drops at three depths, first by change of high frequencies"

    setting: Literal[192, 128, 64] = 192
    """The published counts, of 576 tokens, that no budget means and a budget scales."""
    cutoff: float = 0.1
    """Width of what the filter takes away, as a share of half the grid's shorter side, 1e-6 or
    more."""
    temperature: float = 0.1
    """Of the sigmoid of changes, 1e-6 or more. The larger, the less they count."""

    def __post_init__(self) -> None:
        check_fields(self, cutoff="[1e-6, inf)", temperature=TEMPERATURE)

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{layer: tokens left}, without cuts that change nothing."""
        counts = dict(zip(_CUTS, _LEFT[self.setting], strict=True))
        return published("clse", counts, _OF, layers, tokens, budget, earlier="fastv(k=1)")

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the last token in the layer before, times the change where there is a
        grid."""
        attention = view.attention(rows="last", of="previous").mean(dim=(0, 1))[view.visual]
        sizes = [len(grid) for grid in view.parts]
        if len(view.index) < sum(sizes):
            return attention
        found = []
        for hidden in (view.entered, view.hidden):
            pieces = zip(torch.split(hidden[view.visual], sizes), view.parts, strict=True)
            found.append(torch.cat([high_frequency(*one, self.cutoff) for one in pieces]))
        before, after = found
        return attention * evolution(before, after, self.temperature)
