"""Where a curve of sorted scores bends."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError


def elbow(scores: Tensor) -> float:
    """The score at the elbow of all scores, sorted from high to low.

    The elbow is the point (rank, score) farthest from the line through the first and the last
    point, the first of several. Scores on that very line have none: the highest is returned, so
    that nothing lies above.

    Args:
        scores: [N] any dtype.

    Raises:
        VLMCompressError: there are no scores, or one of them is NaN or infinite.

    Source: CoreMatching, arXiv 2505.19235, code.
    """
    if scores.numel() == 0:
        raise VLMCompressError("elbow needs at least one score, got none")
    # Exact for counts: in float64 equal distances tie, as in a drawing by hand.
    y = scores.detach().cpu().double().sort(descending=True).values
    if not bool(y.isfinite().all()):
        raise VLMCompressError("elbow needs finite scores, got NaN or infinite ones")
    x = torch.arange(len(y), dtype=torch.float64)
    # Twice the area of a triangle over the line, which is the distance times its length.
    distance = (x * (y[-1] - y[0]) - (y - y[0]) * x[-1]).abs()
    return float(y[distance.argmax()])
