"""P-Sigmoid: tokens leave all along the depth, along a sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.calibrated_schedules import Calibrated, check_depth, cut
from vlmcompress.methods.shared.schedules import check_cuts, nearest


@dataclass(frozen=True)
class PSigmoid(DecoderMethod):
    """Layer i sees the share r(i) = 1 / (1 + exp(kappa * (i - alpha))) of the visual tokens.

    They are ranked by the attention that they receive in layer i - 1, mean over heads and text
    tokens. alpha is solved so that the true mean over layers meets the budget. Our reading of a
    paper without public code; which rows rank, and the default ratio, are ours.

    Deviations:
        All tokens enter layer 0: what is dropped before it is the projector stage's. alpha is
        solved with that, so the mean is still the budget.
        At least one token stays in every layer.
        kappa comes from `vlmcompress calibrate gsearch` or the user; the paper searches it, and the
        counts of G-Search, by Bayesian optimisation.
    """

    name: ClassVar[str] = "psigmoid"
    paper: ClassVar[str] = "arXiv 2412.00556"
    summary: ClassVar[str] = "drops a few before every layer, along a sigmoid (our reading)"

    kappa: float = 0.5
    """Steepness; above 0. Not looked at where a table gives its own."""
    ratio: float = 0.25
    """Mean share kept when no budget is given, in (0, 1]; more where the decoder is too shallow."""
    rows: Literal["text", "last"] = "text"
    """Whose attention ranks: of all text after the last picture, or of the last token."""
    table: str | None = None
    """A file that `vlmcompress calibrate gsearch` wrote: its shares, or for a budget its kappa."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if not 0 < self.kappa < math.inf:
            raise VLMCompressError(f"psigmoid: kappa must be above 0, got {self.kappa}")
        if not 0 < self.ratio <= 1:
            raise VLMCompressError(
                f"psigmoid: ratio must be above 0 and at most 1, got {self.ratio}"
            )
        if self.table is not None:
            _ = self._calibrated

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{layer: round(r(layer) * tokens), at least 1} where it changes."""
        check_cuts("psigmoid", [1], layers)
        kappa = self.kappa
        if self.table is not None:
            check_depth("psigmoid", self.table, self._calibrated.shares, layers)
            if budget is None:
                return cut(self._calibrated.shares, tokens, least=1)
            kappa = self._calibrated.kappa or kappa
        least = (tokens + layers - 1) / layers
        if budget is None:
            budget = max(self.ratio * tokens, least)
        if budget >= tokens:
            return {}
        if not budget >= least - 1e-6:
            raise BudgetError(
                f"psigmoid cannot keep fewer than ({tokens} + {layers - 1}) / {layers} = "
                f"{math.ceil(least * 100 - 1e-4) / 100:g} visual tokens on average, got "
                f"{budget:g}: combine it with a projector-stage method, for example "
                f'"divprune+psigmoid"'
            )
        return nearest(
            lambda alpha: cut(
                sigmoid_shares(layers, kappa, alpha, all_enter=True), tokens, least=1
            ),
            layers,
            tokens,
            budget,
            _ends(layers, kappa),
        )

    def score(self, view: LayerView) -> Tensor:
        """[V] attention received in the layer that just ran, mean over heads and rows."""
        if self.rows == "text" and len(view.text) == 0:
            raise VLMCompressError(
                "psigmoid ranks by the text after the picture, but there is none"
            )
        return view.attention(rows=self.rows, of="previous").mean(dim=(0, 1))[view.visual]

    @cached_property
    def _calibrated(self) -> Calibrated:
        """What `table` says, read once."""
        assert self.table is not None
        return Calibrated.read(self.table, "gsearch", "psigmoid")


def sigmoid_shares(
    layers: int, kappa: float, alpha: float, *, all_enter: bool = False
) -> list[float]:
    """r(i) for all layers; with `all_enter` 1 for layer 0."""
    shares = [(1 - math.tanh(kappa * (layer - alpha) / 2)) / 2 for layer in range(layers)]
    return [1.0, *shares[1:]] if all_enter else shares


def solve_alpha(layers: int, kappa: float, mean: float, *, all_enter: bool = False) -> float:
    """The alpha with which `sigmoid_shares` have this mean.

    Args:
        layers: of the decoder.
        kappa: steepness.
        mean: share, in (0, 1); with `all_enter` above 1 / layers.
        all_enter: see `sigmoid_shares`.
    """
    low, high = _ends(layers, kappa)
    for _ in range(100):
        middle = (low + high) / 2
        if sum(sigmoid_shares(layers, kappa, middle, all_enter=all_enter)) <= mean * layers:
            low = middle
        else:
            high = middle
    return low


def _ends(layers: int, kappa: float) -> tuple[float, float]:
    """Where all shares are 0 or 1 for whole numbers of tokens."""
    return -40 / kappa, layers + 40 / kappa
