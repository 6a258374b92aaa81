"""ToMe: the most similar tokens merge, half against half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.before_projector import EncoderView
from vlmcompress.methods.contracts.method import AskingReducer
from vlmcompress.methods.contracts.threshold import ByThreshold
from vlmcompress.methods.shared.token_merging import Crowd, Merger
from vlmcompress.ops.finite import finite
from vlmcompress.ops.groups import Groups
from vlmcompress.ops.merge import bipartite, close_pairs
from vlmcompress.ops.questions import Asking, answered
from vlmcompress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class ToMe(ByThreshold, Merger, AskingReducer):
    """Even tokens join the odd ones with the most similar keys, a constant number in every layer.

    A group is the mean of its patches, and later layers attend to it in proportion to their number
    (equation 1). Official code: facebookresearch/ToMe.

    The paper sets the number r by model and has no setting for towers of VLMs: here r is solved for
    the budget, the smallest that reaches it, and the last layers take the rest.

    With a `threshold`, after the projector only, rounds go on as long as a token of one half is
    within that distance, 1 - cosine, of one of the other, and all of these merge (ours).

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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_threshold(2)
        if self.threshold is not None and self.stage == "encoder":
            raise VLMCompressError(
                "tome: all tiles of a vision tower keep equally many tokens, so a threshold goes "
                "with stage='projector'"
            )

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        """`count` means; with a threshold what does not repeat."""
        return answered(self.reducing(tokens, count))

    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """`reduce` that yields how many pairs merge in the next round."""
        if self.threshold is None:
            return super().reduce(tokens, count)
        values, sizes = finite(tokens.features)[None], self.counted(tokens)
        groups = Groups.single(values)
        while merging := int((yield close_pairs(values, self.threshold))):
            found = Groups.of(bipartite(values, merging), count=values.shape[1] - merging)
            values, sizes = found.mean(values, sizes), found.sum(sizes)
            groups = groups.then(found)
        if groups.count == len(tokens.grid):
            return Reduction.identity(tokens.features)
        return groups.reduction(values.to(tokens.features.dtype))

    def seen(self, view: EncoderView) -> Crowd:
        """Keys, mean over heads."""
        return Crowd(view.keys(), view.sizes)

    def match(self, crowd: Crowd, remove: int) -> Tensor:
        """[B, n] leaders."""
        return bipartite(crowd.metric, remove, crowd.protected)
