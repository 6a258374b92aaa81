"""MMTok: tokens that cover the words of the instruction and the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.text_similarity import text_cosine
from vlmcompress.ops.coverage import facility_location
from vlmcompress.ops.similarity import cosines
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class MMTok(Selector):
    """Keep the tokens that cover words and tokens best, greedily (maximum coverage).

    A word, or a token, is covered as far as the kept token that it is most similar to. Similarity
    is the cosine, with a softmax over all tokens for each word and each token. The objective is the
    mean coverage of the words plus alpha times the mean coverage of the tokens. Official code:
    Ironieser/MMTok.

    Deviations:
        Coverage of tokens is on projected features, in the official code on the vision tower's
        output before the projector.
        All words of the instruction count; the official code for LLaVA strips it down to keywords.
        The paper's variant where a small model answers first is left out.
    """

    name: ClassVar[str] = "mmtok"
    paper: ClassVar[str] = "arXiv 2508.18264"
    summary: ClassVar[str] = "keeps features that cover text and image"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    ratio: float = 1 / 9
    """Share kept when no budget is given; in (0, 1]. 64 of the 576 tokens of LLaVA-1.5."""
    alpha: float = 0.5
    """Weight of the coverage of tokens, 0 or more; that of words has 1."""
    text_temperature: float = 0.02
    """Temperature of the softmax over tokens for each word, above 0."""
    vision_temperature: float = 0.2
    """Temperature of the softmax over tokens for each token, above 0."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            ratio="(0, 1]",
            alpha="[0, inf)",
            text_temperature="(0, inf)",
            vision_temperature="(0, inf)",
        )

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        return self.pick(tokens, count).sort().values

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, the token that covers most first."""
        words = text_cosine(self.name, tokens)
        image = cosines(tokens.features, tokens.features)
        similar = torch.cat(
            [
                (words / self.text_temperature).softmax(dim=-1) / len(words),
                (image / self.vision_temperature).softmax(dim=-1) * (self.alpha / len(image)),
            ]
        )
        # facility_location always gives one.
        return facility_location(similar, count, order="picked")[:count]
