"""Inject: visual tokens that enter the decoder at a middle layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import LateEntry, mean_tokens
from vlmcompress.methods.contracts.options import check_types


@dataclass(frozen=True)
class Inject(LateEntry):
    """Experimental. Layers 0 to m-1 run on the text alone; all visual tokens enter layer m.

    They enter with what the projector gave, at their own positions; below layer m they are no
    queries, no keys, and nothing in the KV cache. The third proposal of EmbedLens, without its
    filter of tokens (for that write "embedlens+inject") and without a layer where they leave again.
    Models that were not trained for it lose nearly all: the built-in ones answer as if blind.

    For a budget m is the smallest layer whose mean N * (L - m) / L is within it, so that the mean
    falls short of the budget by less than N / L. Without a budget m is L // 2. Where `layer` says m
    a budget is an upper bound that methods before the decoder fill: "divprune+inject(layer=2)"
    keeps budget * L / (L - 2) tokens from layer 2 on.

    Refused where the first layers add features to visual tokens (DeepStack), where layers carry a
    state along, with FlashAttention, and with renumbered positions.
    """

    name: ClassVar[str] = "inject"
    paper: ClassVar[str] = "arXiv 2603.00510"
    summary: ClassVar[str] = "lets all tokens in at a middle layer of the decoder (experimental)"

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if self.layer is not None and self.layer < 0:
            raise VLMCompressError(f"inject: layer must be 0 or more, got {self.layer}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{0: 0, m: tokens}, or {} where m is 0."""
        if self.layer is not None and self.layer >= layers:
            raise BudgetError(
                f"inject must let tokens in at one of the layers 0 to {layers - 1} of this decoder "
                f"of {layers} layers, got {self.layer}"
            )
        first = self.layer
        if first is None:
            first = layers // 2 if budget is None else _first_within(layers, tokens, budget)
        found = {0: 0, first: tokens} if first and tokens else {}
        mean = mean_tokens(layers, tokens, found)
        if budget is not None and mean > budget + 0.5:  # methods before it keep whole tokens
            raise BudgetError(
                f"inject(layer={first}) lets {tokens} visual tokens into {layers - first} of "
                f"{layers} layers, {mean:g} on average, and the budget is {budget:g}: give one of "
                "the two"
            )
        return found


def _first_within(layers: int, tokens: int, budget: float) -> int:
    """The first layer that lets no more than the budget in.

    Raises:
        BudgetError: not even the last one.
    """
    if budget >= tokens:
        return 0
    least = tokens / layers
    if budget < least - 1e-6:
        shown = f"{math.ceil(least * 100 - 1e-4) / 100:g}"
        raise BudgetError(
            f"inject lets all tokens into the last layer at least and cannot keep fewer than "
            f"{tokens}/{layers} = {shown} visual tokens on average, got {budget:g}: combine it "
            'with a projector-stage method, for example "divprune+inject"'
        )
    return min(layers - 1, math.ceil(layers * (1 - budget / tokens) - 1e-6))
