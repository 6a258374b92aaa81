"""ToMe: the most similar tokens merge, half against half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.methods.contracts.before_projector import EncoderView
from vlmcompress.methods.shared.token_merging import Crowd, Merger
from vlmcompress.ops.merge import bipartite


@dataclass(frozen=True)
class ToMe(Merger):
    """Even tokens join the odd ones with the most similar keys, a constant number in every layer.

    A group is the mean of its patches, and later layers attend to it in proportion to their number
    (equation 1). Official code: facebookresearch/ToMe.

    The paper sets the number r by model and has no setting for towers of VLMs: here r is solved for
    the budget, the smallest that reaches it, and the last layers take the rest.

    Deviations, besides those of `Merger`:
        Keys are those of the layer that just ran, on the tokens that entered it, as in the paper;
        only the merge comes after its MLP.
        After the projector there are no keys, so features are compared.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "arXiv 2210.09461"
    summary: ClassVar[str] = "merges similar tokens of two halves"

    proportional: bool = True
    """Whether later layers of the tower attend to a token in proportion to its size."""

    def seen(self, view: EncoderView) -> Crowd:
        """Keys, mean over heads."""
        return Crowd(view.keys(), view.sizes)

    def match(self, crowd: Crowd, remove: int) -> Tensor:
        """[B, n] leaders."""
        return bipartite(crowd.metric, remove, crowd.protected)
