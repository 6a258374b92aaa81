"""SCOPE: salient tokens that cover what is not covered yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import Selector
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.saliency import NEED, saliency
from vlmcompress.ops.coverage import facility_location, facility_location_of
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.similarity import MATRIX_BYTES, cosines_of, self_cosines, unit_rows
from vlmcompress.tokens import VisualTokens


@dataclass(frozen=True)
class Scope(Selector):
    """Keep the tokens of the highest gain in coverage times saliency^alpha, greedily.

    A set covers a token as far as the most similar of its members, by cosine and at least 0; the
    gain of a token is how much coverage it adds, summed over all tokens. Saliency is the attention
    of CLS. Official code: kinredon/SCOPE.

    Deviations:
        Cosines are of the projected features, those of the official code of the vision tower's
        output before the projector.
        Towers without a CLS give the attention that a token receives from all others; the paper
        has none.
        Several grids of an image are pruned one by one, as in the official code for LLaVA-NeXT.
    """

    name: ClassVar[str] = "scope"
    paper: ClassVar[str] = "arXiv 2510.24214"
    summary: ClassVar[str] = "keeps salient features that cover the rest"
    needs: ClassVar[frozenset[str]] = frozenset({NEED})

    ratio: float = 1 / 9
    """Share kept when no budget is given; in (0, 1]. 64 of the 576 tokens of LLaVA-1.5."""
    alpha: float = 1.0
    """Weight of the saliency, 0 or more: 0 is coverage alone."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]", alpha="[0, inf)")

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        return self.pick(tokens, count).sort().values

    def pick(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, the highest SCOPE score first."""
        salient = saliency(tokens)
        expect(
            (salient >= 0).all(),
            lambda: VLMCompressError(
                f"scope: attention must be 0 or more, got {float(salient.min()):g}"
            ),
        )
        # Scaled to the largest, so that no power vanishes or overflows for all.
        weights = (salient / salient.max().clamp(min=1e-30)) ** self.alpha
        unit = unit_rows(tokens.features)
        # Either always gives one.
        return _cover(unit, max(1, count), weights.to(unit))[:count]


def _cover(unit: Tensor, count: int, weights: Tensor) -> Tensor:
    """[count] in the order of the picks; all cosines at once up to `MATRIX_BYTES`."""
    tokens = len(unit)
    if 4 * tokens**2 > MATRIX_BYTES:
        columns = partial(cosines_of, unit)
        return facility_location_of(columns, tokens, count, weights, order="picked")
    with torch.autocast(unit.device.type, enabled=False):
        similar = self_cosines(unit)
    return facility_location(similar, count, weights, order="picked", symmetric=True)
