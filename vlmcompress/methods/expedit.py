"""Expedit: soft clusters on a coarser grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.method import AskingReducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.shared.grid_shapes import Pooler
from vlmcompress.ops.cluster import soft_clustering
from vlmcompress.ops.groups import Groups
from vlmcompress.ops.questions import Asking, answered
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Expedit(Pooler, AskingReducer):
    """Windowed soft k-means; its centres are the new tokens, each frame for itself.

    Centres start as the means of an a x b grid and move to the tokens that are like them nearby.
    Counts are those of `pool`, a*b of each frame. A centre's group is the tokens to which it is the
    nearest centre. Official code: Expedit-Vision-Models (SAM, SWAG).

    Deviations:
        After the projector instead of between layers of a ViT, and without reconstruction
        (`vlmcompress.ops.cluster.rebuild_weights` has its weights): a decoder needs no full grid.
        A centre that no token belongs to stays where it is, and one that is nobody's nearest takes
        a token that another group can spare, so that it has a place.
    """

    name: ClassVar[str] = "expedit"
    paper: ClassVar[str] = "arXiv 2210.01035"
    summary: ClassVar[str] = "replaces tokens by soft clusters on a coarser grid"

    temperature: float = 0.01
    """Of the softmax over squared distances, at most 1e6: the higher, the harder the clusters."""
    iterations: int = 5
    window: int = 5
    """Cells, across, among which a token has shares."""

    def __post_init__(self) -> None:
        check_fields(self, temperature="(0, 1e6]")
        if self.iterations < 0:
            raise VLMCompressError(f"expedit: iterations must be 0 or more, got {self.iterations}")
        if self.window < 1:
            raise VLMCompressError(f"expedit: window must be at least 1, got {self.window}")

    def goes_by(self, grid: Grid) -> bool:
        """No: a cluster stands at the first token that went to it."""
        return False

    def pooled(self, tokens: VisualTokens, shape: Grid) -> Reduction:
        """Centres, placed by their groups."""
        return answered(self._pooling(tokens, shape))

    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """`reduce`, which asks which centres nobody is nearest to."""
        shape = self.shape_for(tokens, count)
        if shape is None:
            return Reduction.identity(tokens.features)
        return (yield from self._pooling(tokens, shape))

    def _pooling(self, tokens: VisualTokens, shape: Grid) -> Asking[Reduction]:
        grid, features = tokens.grid, tokens.features
        centres, labels = yield from soft_clustering(
            features.reshape(grid.t, grid.h * grid.w, -1),
            (grid.h, grid.w),
            (shape.h, shape.w),
            temperature=self.temperature,
            iterations=self.iterations,
            window=self.window,
        )
        made = Groups(labels, shape.h * shape.w).reduction(centres)
        return replace(made, features=made.features.to(features.dtype))
