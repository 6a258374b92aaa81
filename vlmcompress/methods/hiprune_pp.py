"""HiPrune++: HiPrune, and what is closest to the words of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.hiprune import HiPrune, add_best
from vlmcompress.methods.shared.text_similarity import text_cosine
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class HiPrunePP(HiPrune):
    """HiPrune on all but round(beta * N') tokens of a budget of N'; the rest go by the text.

    Those are the tokens, among the ones that HiPrune left, whose features are closest to the mean
    embedding of the instruction, by cosine. There is no official code.

    Deviations, beside those of `HiPrune`:
        The share is beta of the budget, as in the text of the paper; its pseudo-code has a fifth of
        that.
        They are part of the budget (the paper does not say; its FLOPs suggest it).
        The text is embedded by the decoder's own table, as the paper does where the vision tower
        is not CLIP; for CLIP it takes CLIP's text encoder.
    """

    name: ClassVar[str] = "hiprune-pp"
    summary: ClassVar[str] = "keeps what HiPrune keeps, and what is closest to the text"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention", "text"})

    beta: float = 0.1
    """Share of the budget that goes by the text; 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, beta="[0, 1]")

    def _keeper(self, tokens: VisualTokens) -> Callable[[slice, int], Tensor]:
        hierarchy = super()._keeper(tokens)
        text = tokens.text
        if text is not None and len(text):
            tokens = replace(tokens, text=text.float().mean(0, keepdim=True))
        closeness = text_cosine(self.name, tokens)[0]

        def keep(own: slice, quota: int) -> Tensor:
            by_text = round(self.beta * quota)
            return add_best(hierarchy(own, quota - by_text), closeness[own], by_text)

        return keep
