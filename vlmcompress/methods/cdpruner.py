"""CDPruner: diverse tokens, on condition that they matter to the instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.saliency import check_signal
from vlmcompress.methods.shared.text_similarity import text_cosine
from vlmcompress.ops.coverage import dpp_map
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class CDPruner(Selector):
    """Keep the tokens that a determinantal point process finds most probable together, greedily.

    Its kernel is r_i cos(v_i, v_j) r_j: v are the projected features, r the relevance of a token to
    the instruction, scaled to [0, 1] over the image. Official code: Theia-4869/CDPruner.

    With a text tower, relevance is CLIP's cosine, by default its negative as in the official code
    for LLaVA: patches of OpenAI's CLIP tend to be less similar to the words that name them. Else it
    is the mean cosine with the embedded words of the instruction, not negated.

    Deviations:
        The official code adds 1e-6 before it divides by the range of the relevance. Here the least
        relevant token has weight 0 and is kept last; where all are equal, all have weight 1.
        What is numerically in the span of the kept tokens adds nothing and is kept last, lowest
        index first; the official code goes on with rounding noise, or NaN.
        Relevance by embedded words follows openvino.genai; the authors' code for models without a
        text tower is not public.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "arXiv 2506.10967"
    summary: ClassVar[str] = "keeps diverse features that the text asks for"
    needs: ClassVar[frozenset[str]] = frozenset({"relevance|text"})

    ratio: float = 1 / 9
    """Share kept when no budget is given; in (0, 1]. 64 of the 576 tokens of LLaVA-1.5."""
    negate: bool = True
    """Whether a low cosine of CLIP means relevant: a property of the tower. Give False where
    patches resemble the words that name them. Of no effect on embedded words."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        # dpp_map always gives one.
        return dpp_map(tokens.features, count, self._relevance(tokens))[:count]

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, the most relevant token first."""
        return dpp_map(tokens.features, count, self._relevance(tokens), order="picked")[:count]

    def _relevance(self, tokens: VisualTokens) -> Tensor:
        """[N] float32 in [0, 1]."""
        if tokens.relevance is not None:
            given = check_signal("relevance", tokens.relevance, tokens)
            given = -given if self.negate else given
        else:
            given = text_cosine(self.name, tokens).mean(dim=0)
        low, high = given.aminmax()
        return torch.where(high > low, (given - low) / (high - low), 1.0)
