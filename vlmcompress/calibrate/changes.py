"""Where the attention that text pays to a picture changes: the analysis behind AdaptInfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError

ATTENDED = 0.1
"""Share of the tokens whose attention is followed: those that get most over all layers."""
REGIONS = 2
"""Dense regions of change points that give a location each, besides the one before the first."""


def attended_curve(attention: Tensor) -> Tensor:
    """Attention that the most attended tokens have received up to each layer.

    Args:
        attention: [L, V] that each visual token receives from the text in each layer.

    Returns:
        [L] float64: cumulative sum over layers, mean over the tokens; never falls.
    """
    attention = attention.double()
    count = max(1, round(ATTENDED * attention.shape[1]))
    most = attention.sum(0).sort(descending=True, stable=True).indices[:count]
    return attention[:, most].mean(1).cumsum(0)


def change_point(curve: Sequence[float] | Tensor) -> int:
    """The last layer of the left one of two segments that a curve falls into.

    The split t, from 2 to L - 2, has the smallest sum of squared distances of both segments to
    their means, of equals the first; the result is t - 1.

    Raises:
        VLMCompressError: fewer than 4 layers.
    """
    values = torch.as_tensor(curve, dtype=torch.float64)
    layers = len(values)
    if layers < 4:
        raise VLMCompressError(f"a change point needs a decoder of 4 layers or more, got {layers}")

    def cost(segment: Tensor) -> float:
        return float((segment - segment.mean()).square().sum())

    splits = range(2, layers - 1)
    return min(splits, key=lambda t: cost(values[:t]) + cost(values[t:])) - 1


def histogram(points: Sequence[int], layers: int) -> list[int]:
    """Change points at each layer."""
    return torch.bincount(torch.tensor(points, dtype=torch.long), minlength=layers).tolist()


def dense_regions(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of layers with at least as many change points as if all layers had the same.

    Only layers 1 to L - 3 can have any. Of more than `REGIONS` runs those with most points stay.

    Args:
        counts: [L] change points at each layer.

    Returns:
        (first, last) layer of each run, ascending.
    """
    possible = range(1, len(counts) - 2)
    least = sum(counts) / len(possible)
    runs: list[list[int]] = []
    for layer in possible:
        if counts[layer] < least:
            continue
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    heaviest = sorted(runs, key=lambda run: -sum(counts[layer] for layer in run))[:REGIONS]
    return sorted((run[0], run[-1]) for run in heaviest)


def locations(counts: Sequence[int]) -> list[int]:
    """Layers after which tokens are dropped: just before the first dense region, and at its end and
    that of the others.

    Source: AdaptInfer cuts "just before or after the dense regions of change points"; what is dense
    and which of the two is ours.
    """
    regions = dense_regions(counts)
    return [regions[0][0] - 1, *(last for _, last in regions)]
