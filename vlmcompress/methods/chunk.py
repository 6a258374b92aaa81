"""Chunk: neighbours in raster order merge, up to where the picture changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.methods.contracts.method import AskingReducer
from vlmcompress.methods.contracts.options import check_fields
from vlmcompress.methods.contracts.threshold import ByThreshold
from vlmcompress.ops.finite import finite
from vlmcompress.ops.groups import segment_sum
from vlmcompress.ops.questions import Asking
from vlmcompress.ops.ranking import marked
from vlmcompress.ops.select import top_k
from vlmcompress.ops.similarity import changes
from vlmcompress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Chunk(ByThreshold, AskingReducer):
    """Cut the sequence of tokens where neighbours differ most; each run becomes its mean.

    Neighbours in raster order, from one row to the next and from one frame to the next, are apart
    by 1 - cosine. For a budget the count - 1 largest of these are the borders, ties to the first;
    with a `threshold` every one above it. A run weighs its tokens by the patches they stand for.

    After the boundaries of ConceptMoE (arXiv 2601.21420), whose projections and router are trained:
    here nothing is, and what is left is ours. A baseline for merging along the sequence, beside the
    mergers of two halves.
    """

    name: ClassVar[str] = "chunk"
    paper: ClassVar[str] = "-"
    summary: ClassVar[str] = "merges runs of similar neighbours"

    ratio: float = 0.25
    """Share kept when no budget is given; in (0, 1]."""

    def __post_init__(self) -> None:
        check_fields(self, ratio="(0, 1]")
        self.check_threshold(2)

    def reducing(self, tokens: VisualTokens, count: int) -> Asking[Reduction]:
        """`count` means; with a threshold as many as there are runs."""
        features, total = tokens.features, len(tokens.grid)
        rows, apart = finite(features), changes(features, 1)
        count = max(0, min(count, total))
        if not count:
            return Reduction.from_groups(features[:0], [])
        starts = torch.ones(total, dtype=torch.bool, device=features.device)
        if self.threshold is not None:
            starts[1:] = apart > self.threshold
            count = int((yield starts).sum())
        elif count < total:
            starts[1:] = False
            if count > 1:
                starts[top_k(apart, count - 1) + 1] = True
        if count == total:
            return Reduction.identity(features)
        places = torch.arange(total, device=features.device)
        offsets = torch.cat([marked(starts, count), places.new_full((1,), total)])
        weights = _patches(tokens)
        share = segment_sum(weights[:, None], places, offsets)
        means = segment_sum(rows, places, offsets, weights) / share
        return Reduction(means.to(features.dtype), places, offsets)


def _patches(tokens: VisualTokens) -> Tensor:
    """[N] float32: that each token stands for."""
    if tokens.sizes is None:
        return torch.ones(len(tokens.features), device=tokens.features.device)
    return tokens.sizes.to(tokens.features.device, torch.float32)
