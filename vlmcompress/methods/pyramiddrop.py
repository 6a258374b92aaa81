"""PyramidDrop: several cuts inside the decoder, a fixed share left by each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.schedules import (
    check_cuts,
    check_reachable,
    falling,
    nearest,
    quarters,
)


@dataclass(frozen=True)
class PyramidDrop(DecoderMethod):
    """Before the j-th of `layers` keep int(N * lam**j) of the N visual tokens of the image.

    Tokens are ranked by the attention of the last token in the layer that is about to run: its own
    norm, query and key weights on its input, softmax over all keys, mean over heads. Inference part
    of the paper only. Official code: Cooperx521/PyramidDrop.

    For a budget lam is solved so that the true mean over layers is the nearest that whole numbers
    allow, at most half a token away.

    Deviations:
        The default cuts are the quarters of the depth, L*j // 4: 8, 16, 24 of 32 as in the paper;
        its scripts use 8, 16, 24 also for 40 layers.
        Tokens keep their positions unless the caller renumbers; the official code renumbers at
        every cut.
        Key heads are repeated for grouped queries, where the official code fails.
    """

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "arXiv 2410.17247"
    summary: ClassVar[str] = "drops a share at several depths by the last token's attention"

    layers: tuple[int, ...] | None = None
    """Layers before which tokens are dropped, ascending; None for the quarters of the depth."""
    lam: float = 0.5
    """Share that each cut leaves when no budget is given; in (0, 1)."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if not 0 < self.lam < 1:
            raise VLMCompressError(f"pyramiddrop: lam must be between 0 and 1, got {self.lam}")
        cuts = self.layers
        if cuts is not None and (not cuts or cuts[0] < 1 or sorted(set(cuts)) != list(cuts)):
            raise VLMCompressError(
                f"pyramiddrop: layers must be ascending and 1 or more, for example (8, 16, 24), "
                f"got {cuts}"
            )

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{layer: int(tokens * lam**j)} without cuts that change nothing."""
        cuts = self.layers
        if cuts is None:
            cuts = quarters(layers)
        check_cuts("pyramiddrop", cuts, layers)
        if budget is None:
            return _cut(cuts, tokens, self.lam)
        if budget >= tokens:
            return {}
        earlier = f"layers={(1, *cuts[1:])}"
        check_reachable("pyramiddrop", cuts[0], layers, tokens, budget, earlier)
        return nearest(lambda lam: _cut(cuts, tokens, lam), layers, tokens, budget)

    def score(self, view: LayerView) -> Tensor:
        """[V] attention of the last token in the layer about to run, mean over heads."""
        return view.attention(rows="last").mean(dim=(0, 1))[view.visual]


def _cut(cuts: tuple[int, ...], tokens: int, lam: float) -> dict[int, int]:
    # 100 * 0.7**2 is 48.99... in floating point; the paper's table of ratios means 49.
    kept = (min(int(tokens * lam**stage + 1e-9), tokens) for stage, _ in enumerate(cuts, start=1))
    return falling(dict(zip(cuts, kept, strict=True)), tokens)
