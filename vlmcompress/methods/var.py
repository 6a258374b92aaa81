"""VAR: drops visual attention sinks, which a few huge hidden dimensions give away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.shared.published_tables import published
from vlmcompress.methods.shared.schedules import check_cuts, one_cut
from vlmcompress.ops.sinks import sinkness

PUBLISHED = Path(__file__).parent / "data" / "sinks.json"
"""Name of a decoder -> its sink dimensions, with their origin."""


@dataclass(frozen=True)
class VAR(DecoderMethod):
    """Before layer k drop visual tokens with a huge value in a sink dimension.

    phi = max over the sink dimensions of |h| / rms(h) of the hidden state that enters layer k; a
    token of phi > tau is a sink (section 4). Which dimensions these are differs from decoder to
    decoder: they are those in which the first token is huge. Official code: seilk/VisAttnSink.

    Deviations:
        The paper moves attention away from sinks and keeps the tokens; that masking them does not
        hurt is its observation, dropping them is ours.
        A budget, which keeps the tokens of the smallest phi, is ours.
    """

    name: ClassVar[str] = "var"
    paper: ClassVar[str] = "arXiv 2503.03321"
    summary: ClassVar[str] = "drops attention sinks, found by huge hidden dimensions"
    adaptive: ClassVar[bool] = True

    dims: tuple[int, ...] | str | None = None
    """Sink dimensions of the decoder, or its name in the table. There is no default, since decoders
    of one shape differ: Llama-2 and Llama-3 both have 4096 dimensions and 32 layers."""
    tau: float = 20.0
    """Of phi, above which a token is a sink."""
    k: int = 2
    """The first layer that runs on fewer tokens, 1 to L - 1."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if self.k < 1:
            raise VLMCompressError(f"var: k must be 1 or more, got {self.k}")
        if not self.tau > 0:
            raise VLMCompressError(f"var: tau must be above 0, got {self.tau}")
        if not isinstance(self.dims, tuple):
            _table(self.dims)
        elif not self.dims or min(self.dims) < 0:
            raise VLMCompressError(f"var: dims must be numbers of 0 or more, got {self.dims}")

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        """{k: keep}; {k: tokens} without a budget, of which the sinks go."""
        if budget is not None:
            return one_cut("var", self.k, layers, tokens, budget)
        check_cuts("var", [self.k], layers)
        return {self.k: tokens}

    def score(self, view: LayerView) -> Tensor:
        """[V] -phi."""
        return -sinkness(view.hidden[view.visual], self._dims(view))

    def keep(self, view: LayerView, count: int) -> Tensor:
        """The `count` of the smallest phi, or all that are no sinks where all may stay."""
        alive = len(view.visual)
        if count < alive or not alive:
            return super().keep(view, count)
        scores = self.score(view)
        return (scores >= -self.tau).nonzero()[:, 0]

    def _dims(self, view: LayerView) -> tuple[int, ...]:
        if isinstance(self.dims, tuple):
            return self.dims
        table, width = _table(self.dims), view.hidden.shape[1]
        if (table["hidden_size"], table["layers"]) != (width, view.depth):
            raise VLMCompressError(
                f"var: dims={self.dims!r} is a decoder of {table['hidden_size']} dimensions and "
                f"{table['layers']} layers, this one has {width} and {view.depth}"
            )
        return tuple(table["dims"])


def _table(name: str | None) -> dict[str, Any]:
    """What is known of a decoder.

    Raises:
        VLMCompressError: nothing.
    """
    known = published(PUBLISHED)
    if name not in known:
        raise VLMCompressError(
            f"var needs the sink dimensions of the decoder, got dims={name!r}: give "
            f"dims={' or '.join(map(repr, known))}, or for another decoder the numbers that "
            "vlmcompress.calibrate.sinks.calibrate(model, inputs) finds"
        )
    return dict(known[name])
