"""PriorTR: one cut inside the decoder, by what the question changes about the attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.schedules import one_cut

_LITTLE = 1e-10


@dataclass(frozen=True)
class PriorTR(DecoderMethod):
    """Before layer k drop the tokens that the question attends to no more than any text would.

    In layer k - 1, P is the mean attention of the question to the tokens of the image and Q that of
    the first token after the image, which cannot see the question; both are scaled to sum 1. A
    token scores P * ln(P / Q), its part of their Kullback-Leibler divergence. Official code:
    CodeChildCZJ/PriorTR.

    Deviations:
        A budget is the true mean over layers; the paper's 192, 128 and 64 of 576 are counts after
        the cut (means 228, 170 and 112).
        Layers before the cut keep all keys, so that later tokens see there what the prompt saw. The
        official code cuts their cache, too.
        With several images Q is that of the first token after each; the official code has one. For
        an image that another follows at once it is the first token of that.
        The question is all text after the last visual token; on Qwen the official code leaves out
        its last row.
    """

    name: ClassVar[str] = "priortr"
    paper: ClassVar[str] = "arXiv 2606.24156"
    summary: ClassVar[str] = "drops what the question attends to no more than text without it"

    k: int = 3
    """The first layer that runs on fewer tokens, 1 to L - 1."""
    ratio: float = 2 / 3
    """Share dropped when no budget is given; in [0, 1). 576 to 192; the paper also has 128, 64."""
    rows: Literal["question", "last"] = "question"
    """Whose attention is P: all rows of the question, or the last alone, as for LLaVA-1.6."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="[0, 1)")
        if self.k < 1:
            raise VLMCompressError(f"priortr: k must be 1 or more, got {self.k}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: keep}, or {} where that keeps all."""
        return one_cut("priortr", self.k, layers, tokens, budget, dropped=self.ratio)

    def score(self, view: LayerView) -> Tensor:
        """[V] P * ln(P / Q), which may be negative."""
        asked = view.attention(rows="text" if self.rows == "question" else "last", of="previous")
        prior = view.attention(rows="after", of="previous")
        p, q = (_shares(rows[..., view.visual]) for rows in (asked, prior))
        return p * ((p + _LITTLE) / (q + _LITTLE)).log()


def _shares(attention: Tensor) -> Tensor:
    """[V] of [H, R, V]: mean over heads and rows, scaled to sum 1."""
    mean = attention.float().mean(dim=(0, 1))
    return mean / (mean.sum() + _LITTLE)
