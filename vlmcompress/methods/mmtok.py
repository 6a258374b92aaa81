"""MMTok: tokens that cover the words of the instruction and the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.methods.shared.text_similarity import text_cosine
from vlmcompress.ops.coverage import facility_location, facility_location_of
from vlmcompress.ops.similarity import MATRIX_BYTES, cosines_of, unit_rows
from vlmcompress.tokens import VisualTokens

_ROWS = 512
"""Rows of cosines that are added up at once where there are too many for all."""


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
    """Temperature of the softmax over tokens for each word, 1e-6 or more."""
    vision_temperature: float = 0.2
    """Temperature of the softmax over tokens for each token, 1e-6 or more."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            ratio="(0, 1]",
            alpha="[0, inf)",
            text_temperature=TEMPERATURE,
            vision_temperature=TEMPERATURE,
        )

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        return self.pick(tokens, count).sort().values

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, the token that covers most first."""
        words = text_cosine(self.name, tokens) / self.text_temperature
        # Either always gives one.
        return self._cover(words.softmax(-1) / len(words), unit_rows(tokens.features), count)[
            :count
        ]

    def _cover(self, words: Tensor, unit: Tensor, count: int) -> Tensor:
        """[count] picks; each column of words and image lies together, so none is copied.

        The softmax of a row of cosines c is exp(c / t - log of the row's sum), and c is symmetric.
        """
        tokens, sharp = len(unit), 1 / self.vision_temperature
        across = words.T.contiguous()
        share = self.alpha / tokens
        if 4 * tokens * (tokens + len(words)) <= MATRIX_BYTES:
            whole = torch.cat([across, across.new_empty(tokens, tokens)], dim=1)
            image = whole[:, len(words) :]
            with torch.autocast(unit.device.type, enabled=False):
                torch.mm(unit, unit.T, out=image)
            sums = image.mul_(sharp).logsumexp(1)
            image.sub_(sums).exp_().mul_(share)
            return facility_location(whole.T, count, order="picked")
        parts = torch.split(torch.arange(tokens, device=unit.device), _ROWS)
        sums = torch.cat([(cosines_of(unit, some) * sharp).logsumexp(1) for some in parts])

        def columns(index: Tensor) -> Tensor:
            image = (cosines_of(unit, index) * sharp - sums).exp() * share
            return torch.cat([across.index_select(0, index), image], dim=1)

        device = unit.device
        return facility_location_of(columns, tokens, count, device=device, order="picked")
