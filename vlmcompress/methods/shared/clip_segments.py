"""Where a clip changes."""

from __future__ import annotations

from torch import Tensor

from vlmcompress.ops.select import top_k
from vlmcompress.ops.similarity import unit_rows


def cuts(frames: Tensor, threshold: float, segments: int) -> Tensor:
    """[T - 1] bool: whether a segment ends before each frame but the first.

    Where neighbouring frames, each the mean of its features, are less similar than `threshold`, and
    at the least similar transitions anyway, until there are `segments`.

    Args:
        frames: [T, F, D] any dtype.
        threshold: cosine.
        segments: of a clip that has as many frames, at least; 1 or more.
    """
    means = unit_rows(frames.float().mean(dim=1))
    likeness = (means[1:] * means[:-1]).sum(dim=-1)
    cut = likeness < threshold
    least = min(segments - 1, len(likeness))
    if least:
        cut[top_k(-likeness, least)] = True
    return cut
