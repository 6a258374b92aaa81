"""AIM, inside the decoder: a rank by power iteration over the attention graph, falling to none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod, mean_tokens
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import TEMPERATURE, check_fields
from vlmcompress.methods.shared.schedules import check_cuts, check_reachable, falling, nearest


@dataclass(frozen=True)
class AimPrune(DecoderMethod):
    """After layer l1 keep an eighth of the N visual tokens less with each layer, until none.

    Layers 0 to l1 see all, layer l1 + j sees int(N * (1 - fall * j)). Mass that lies evenly on all
    tokens, text among them, is passed on `steps` times over the sharpened attention graph of the
    layer that just ran; the importance of a token is the root of the mean over heads of its squared
    mass. Text always stays. Official code: LaVi-Lab/AIM.

    For a budget the paper's fall is kept and l1 moved to the last layer whose mean is not above the
    budget, then the fall is solved for the nearest mean that whole numbers allow (steeper only
    where l1 is 0 already). With a given l1 only the fall is solved. The rule is ours; the paper
    sets both by hand.

    Deviations:
        Tokens are removed where the official code masks them, so they hand on no mass later.
        The default l1 is round(L / 2), 14 of 28 layers as in the paper, which has 13 of 32 for
        LLaVA-1.5.
        Even mass is 1 a token instead of 1 / n, which changes no rank and does not depend on n.
    """

    name: ClassVar[str] = "aim-prune"
    paper: ClassVar[str] = "arXiv 2412.03248"
    summary: ClassVar[str] = "drops an eighth a layer by power iteration over attention"

    l1: int | None = None
    """The last layer that sees all tokens, 0 to L - 2; None for round(L / 2)."""
    fall: float = 0.125
    """Share of all tokens that each further layer loses when no budget is given; in (0, 1]."""
    temperature: float = 0.1
    """Temperature of the softmax that makes the graph, 1e-6 or more."""
    steps: int = 5
    """Steps of the power iteration."""

    def __post_init__(self) -> None:
        check_fields(self, temperature=TEMPERATURE)
        if self.l1 is not None and self.l1 < 0:
            raise VLMCompressError(f"aim-prune: l1 must be 0 or more, got {self.l1}")
        if not 0 < self.fall <= 1:
            raise VLMCompressError(
                f"aim-prune: fall must be above 0 and at most 1, got {self.fall}"
            )
        if self.steps < 1:
            raise VLMCompressError(f"aim-prune: steps must be 1 or more, got {self.steps}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{l1 + j: int(tokens * (1 - fall * j))} without cuts that change nothing."""
        last = min(round(layers / 2), layers - 2) if self.l1 is None else self.l1
        check_cuts("aim-prune", [last + 1], layers)
        line = partial(_line, layers, tokens)
        if budget is None:
            return line(last, self.fall)
        if budget >= tokens:
            return {}
        if self.l1 is None:
            means = [mean_tokens(layers, tokens, line(l1, self.fall)) for l1 in range(layers - 1)]
            last = max((l1 for l1, mean in enumerate(means) if mean <= budget), default=0)
        check_reachable("aim-prune", last + 1, layers, tokens, budget, earlier="l1=0")
        return nearest(lambda share: line(last, 1 - share), layers, tokens, budget)

    def score(self, view: LayerView) -> Tensor:
        """[V] importance in the graph of the layer that just ran."""
        even = torch.ones(1, device=view.visual.device)
        mass = view.propagate(even, temperature=self.temperature, steps=self.steps, of="previous")
        return mass.square().mean(0).sqrt()[view.visual]


def _line(layers: int, tokens: int, last: int, fall: float) -> dict[int, int]:
    # 1e-9: 0.7 * 10 is 6.99... in floating point.
    counts = {
        last + j: int(tokens * max(0.0, 1 - fall * j) + 1e-9) for j in range(1, layers - last)
    }
    return falling(counts, tokens)
