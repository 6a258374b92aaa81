"""AdaptInfer: cuts at a few depths, by attention of the text tokens that matter there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.calibrated_schedules import (
    Calibrated,
    check_depth,
    cut,
    meet,
    scaled_cuts,
    stairs,
)
from vlmcompress.methods.shared.published_tables import published
from vlmcompress.methods.shared.schedules import check_cuts
from vlmcompress.ops.text_prior import weigh_by_text

PUBLISHED = Path(__file__).parent / "data" / "adaptinfer.json"
"""Name of a setting -> its model's depth, locations, and counts or ratios."""

_DEFAULT = "llava-1.5-7b-64"
# Only their proportions count, but a share of 1 would be no cut.
_PROPORTIONS = (0.5, 0.5 * 0.22, 0.5 * 0.22 * 0.2)


@dataclass(frozen=True)
class AdaptInfer(DecoderMethod):
    """After a layer ran, keep what the text that matters in that very layer attended to most.

    The weight of a text token is what it receives from later text and pays to earlier text, per
    head. A table gives locations and how much is kept: the layer at a location runs on all that is
    left, its own attention scores, and the next layer is the first with fewer tokens. Official
    code: weiczh02/AdaptInfer-base.

    Without a table the locations are those of LLaVA-1.5-7B, at the same shares of the depth; a
    budget is shared out as 1 : 0.22 : 0.044 after the first, second and third (ours: the published
    counts follow no formula), no budget as in the published setting "64".

    Deviations:
        The budget is the true mean; the code counts each cut one layer early, so its "64" is 82.9.
        Tokens keep their positions unless the caller renumbers, as the code for LLaVA does.
        Nothing is dropped where the budget is above what is there; the code drops one token.
        Counts of relative ratios are rounded once; the code truncates at each cut.
        All text after the last picture weighs, in prompts with several pictures, too.
        For `lam` below 1 the mean that is mixed in is that of each head; the paper names none.
        Equal scores go to the lowest index, at every cut.
    """

    name: ClassVar[str] = "adaptinfer"
    paper: ClassVar[str] = "arXiv 2508.06084"
    summary: ClassVar[str] = "drops at several depths what text that matters attends to least"

    table: str | None = None
    """A published setting such as "llava-1.5-7b-64", or a file that `vlmcompress calibrate
    adaptinfer` wrote. A budget scales it."""
    lam: float = 1.0
    """1 weighs text tokens by their importance, 0 all alike; in [0, 1]."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if not 0 <= self.lam <= 1:
            raise VLMCompressError(f"adaptinfer: lam must be from 0 to 1, got {self.lam}")
        if self.table is not None:
            _ = self._shares

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{location + 1: tokens left}, without cuts that change nothing."""
        check_cuts("adaptinfer", [1], layers)
        if self.table is None:
            shares = _default(layers, budget is None)
        else:
            shares = self._shares
            check_depth("adaptinfer", self.table, shares, layers)
        if budget is None:
            return cut(shares, tokens)
        return meet("adaptinfer", shares, tokens, budget, earlier="another table")

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the text in the layer that just ran, weighed by importance."""
        attention = view.attention(rows="text", of="previous")
        return weigh_by_text(attention[..., view.text], attention[..., view.visual], self.lam)

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        """What `table` says, read once."""
        assert self.table is not None
        known = published(PUBLISHED)
        if self.table not in known:
            return Calibrated.read(self.table, "adaptinfer", "adaptinfer", list(known)).shares
        cuts, kept, depth = _stages(known[self.table])
        return stairs(cuts, kept, depth)


def _stages(table: dict[str, Any]) -> tuple[list[int], list[float], int]:
    """First layers with fewer tokens, the shares left there, and layers of the decoder."""
    cuts = [location + 1 for location in table["locations"]]
    if "ratios" in table:
        return cuts, list(accumulate(table["ratios"], mul)), table["layers"]
    return cuts, [count / table["tokens"] for count in table["counts"]], table["layers"]


def _default(layers: int, as_published: bool) -> tuple[float, ...]:
    cuts, kept, depth = _stages(published(PUBLISHED)[_DEFAULT])
    return stairs(scaled_cuts(cuts, depth, layers), kept if as_published else _PROPORTIONS, layers)
