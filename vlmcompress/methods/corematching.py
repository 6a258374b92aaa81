"""CoreMatching: keeps tokens that fire the same neurons as the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.schedules import check_cuts, one_cut
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.elbow import elbow
from vlmcompress.ops.select import top_k

_ROWS = 256
"""Tokens whose neurons are looked at together."""


@dataclass(frozen=True)
class CoreMatching(DecoderMethod):
    """Before layer k keep the tokens that share the most firing neurons with the last token.

    A neuron fires where act(gate) * up of the MLP is above 0; the score of a token is the number of
    neurons of layer k - 1 that fire for it and for the last prompt token. Without a budget the
    tokens above the elbow of the sorted scores are kept. Official code: wangqinsi1/2025-ICML-
    CoreMatching, of which this is the token part, as its code does it.

    Deviations:
        The paper's core of a sentence (top rho of each token, top beta of all) is not in its code
        and not here.
        The neurons are those of the last prompt token; the official code takes the fifth from the
        end, the last word of the question in its one prompt template.
        The paper's layer 2 is read as FastV's K: layers 0 and 1 run on all tokens. The official
        code zeroes keys and values of layers 5 to 18 instead of removing tokens.
        Where the scores have no elbow all tokens stay.
        Top scores for a budget are the paper's alternative; how a budget becomes a number is ours.
    """

    name: ClassVar[str] = "corematching"
    paper: ClassVar[str] = "arXiv 2505.19235"
    summary: ClassVar[str] = "keeps tokens that fire the neurons of the last token"
    adaptive: ClassVar[bool] = True
    watches: ClassVar[bool] = True

    k: int = 2
    """The first layer that runs on fewer tokens, 1 to L - 1."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if self.k < 1:
            raise VLMCompressError(f"corematching: k must be 1 or more, got {self.k}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: keep}; {k: tokens} without a budget, of which the elbow takes some."""
        if budget is not None:
            return one_cut("corematching", self.k, layers, tokens, budget)
        check_cuts("corematching", [self.k], layers)
        return {self.k: tokens}

    def score(self, view: LayerView) -> Tensor:
        """[V] number of neurons that fire for the token and for the last of the prompt."""
        bounds: list[Tensor] = []

        def firing(rows: Tensor) -> Tensor:
            activations = view.activations(rows)
            bounds.extend(activations.aminmax())
            return (activations > 0).float()

        asked = firing(view.text[-1:])[0]
        with torch.autocast(asked.device.type, enabled=False):  # would round the numbers
            scores = torch.cat([firing(rows) @ asked for rows in torch.split(view.visual, _ROWS)])
        # Once for all blocks: each look waits for the device.
        expect(
            torch.stack(bounds).isfinite().all(),
            lambda: VLMCompressError(
                "corematching: neurons must be finite, got NaN or infinite ones"
            ),
        )
        return scores

    def keep(self, view: LayerView, count: int) -> Tensor:
        """The `count` best, or those above the elbow where all may stay."""
        alive = len(view.visual)
        if count < alive or not alive:
            return super().keep(view, count)
        # The number depends on the content: all that asks for it is done on the CPU.
        scores = self.score(view).cpu()
        above = scores > elbow(scores)
        return top_k(scores, int(above.sum()) or alive).to(view.visual.device)
