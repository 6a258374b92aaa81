"""ToDRE, stage 2: all visual tokens leave late in the decoder once the text looks away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.schedules import check_cuts


@dataclass(frozen=True)
class TodreExit(DecoderMethod):
    """Before layer 7L/8 drop all visual tokens if the text gives them less than tau of its mass.

    The mass is the attention of the text after the last visual token on the visual tokens of the
    image, mean over heads and rows, in the layer that is about to run. Otherwise nothing is dropped
    (section 4, Algorithm 1). There is no official code.

    It has no budget of its own: a budget is that of the method before it, such as `todre-select`,
    and dropping only takes more. Alone it accepts no budget below all tokens.

    Deviations:
        The mass that the visual tokens give to text is not looked at: in a causal decoder it is 0
        for text that comes after them.
        "At depth 7L/8" is read as layer 28 of 0 to 31: its attention is measured before it runs,
        and it runs without them.
        Each image of a prompt is decided on by itself, by its own share of the mass; the paper has
        one image.
    """

    name: ClassVar[str] = "todre-exit"
    paper: ClassVar[str] = "arXiv 2505.18757"
    summary: ClassVar[str] = "drops all late in the decoder if the text looks away"
    adaptive: ClassVar[bool] = True

    tau: float = 0.1
    """Mass below which the tokens leave; in [0, 1]."""
    layer: int | None = None
    """The first layer that may run without them, 1 to L - 1; None for 7L/8."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if not 0 <= self.tau <= 1:
            raise VLMCompressError(f"todre-exit: tau must be between 0 and 1, got {self.tau}")
        if self.layer is not None and self.layer < 1:
            raise VLMCompressError(f"todre-exit: layer must be 1 or more, got {self.layer}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{7L/8: tokens}: that they leave is known only when the layer is reached."""
        layer = max(1, layers * 7 // 8) if self.layer is None else self.layer
        check_cuts("todre-exit", [layer], layers)
        # Methods before the decoder round a budget to whole tokens.
        if budget is not None and not budget >= tokens - 0.5:
            raise BudgetError(
                f"todre-exit may keep all {tokens} visual tokens and cannot promise {budget:g}: "
                'combine it with a projector-stage method, for example "todre-select+todre-exit"'
            )
        return {layer: tokens}

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the text, mean over heads and rows."""
        return view.attention(rows="text").mean(dim=(0, 1))[view.visual]

    def keep(self, view: LayerView, count: int) -> Tensor:
        """All or none."""
        mass = float(self.score(view).sum())
        if not math.isfinite(mass):
            raise VLMCompressError(
                f"todre-exit: the attention before layer {view.layer} is not finite (NaN)"
            )
        stay = 0 if mass < self.tau else min(count, len(view.visual))
        return torch.arange(stay, device=view.visual.device)
