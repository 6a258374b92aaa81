"""Soft clustering of tokens on their grid, and the way back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.finite import finite
from vlmcompress.ops.questions import Asking, answered


def soft_cluster(
    features: Tensor,
    size: tuple[int, int],
    cells: tuple[int, int],
    *,
    temperature: float = 0.01,
    iterations: int = 5,
    window: int = 5,
) -> tuple[Tensor, Tensor]:
    """`soft_clustering` by itself."""
    return answered(
        soft_clustering(
            features, size, cells, temperature=temperature, iterations=iterations, window=window
        )
    )


def soft_clustering(
    features: Tensor,
    size: tuple[int, int],
    cells: tuple[int, int],
    *,
    temperature: float = 0.01,
    iterations: int = 5,
    window: int = 5,
) -> Asking[tuple[Tensor, Tensor]]:
    """Windowed soft k-means whose centres start as the cells of a coarser grid.

    A token's home is the cell where it lies, (i * a // h, j * b // w); it may belong to cells at
    most window // 2 rows and columns from there. In each iteration its shares of them are the
    softmax of -temperature * (squared distance to the centre), and a centre becomes the mean of
    the tokens by their shares. A centre whose shares sum to less than 1e-16 stays (the official
    code moves it to the origin).

    A token's label is the nearest centre among all cells. A cell that is nobody's label takes the
    nearest token that a larger group can spare, if possible one that is at home in it (ours).

    Args:
        features: [B, h*w, D] any floating dtype; computed in float32.
        size: (h, w).
        cells: (a, b), a <= h and b <= w.
        temperature: the higher, the harder the clusters.
        iterations: 0 leaves the means of adaptive windows.
        window: width of the neighbourhood in cells.

    Returns:
        [B, a*b, D] float32 centres and [B, h*w] int64 labels; every cell has a label.

    Raises:
        VLMCompressError: the sizes do not fit, or a row is NaN or infinite.

    Source: Expedit, arXiv 2210.01035, section 3; official code (Expedit-SAM).
    """
    (h, w), (a, b) = size, cells
    if features.shape[1] != h * w or not (1 <= a <= h and 1 <= b <= w):
        raise VLMCompressError(
            f"cannot cluster {features.shape[1]} tokens of a grid of {h}x{w} into {a}x{b} cells"
        )
    x = finite(features)
    # Distances do not change, and they round less.
    middle = x.mean(1, keepdim=True)
    x = x - middle
    row, column = _homes(h, a, x.device), _homes(w, b, x.device)
    reach = window // 2
    rows = (row[:, None] - torch.arange(a, device=x.device)).abs() <= reach
    columns = (column[:, None] - torch.arange(b, device=x.device)).abs() <= reach
    far = ~(rows[:, None, :, None] & columns[None, :, None, :]).reshape(h * w, a * b)
    centres = adaptive_avg_pool2d(x.mT.unflatten(-1, (h, w)), (a, b)).flatten(2).mT  # type: ignore[no-untyped-call]
    with torch.autocast(x.device.type, enabled=False):
        lengths, twice = x.square().sum(-1, keepdim=True), 2 * x
        for _ in range(iterations):
            logits = _squares(lengths, twice, centres).mul_(-temperature)
            shares = logits.masked_fill_(far, -torch.inf).softmax(-1).mT
            total = shares.sum(-1, keepdim=True)
            means = shares @ x / total.clamp_min(1e-16)
            centres = torch.where(total >= 1e-16, means, centres)
        distances = _squares(lengths, twice, centres)
    home = (row[:, None] * b + column).flatten()
    return centres + middle, (yield from _labels(distances, home))


def rebuild_weights(
    before: Tensor,
    centres: Tensor,
    *,
    temperature: float = 0.01,
    nearest: int = 20,
    norm: Literal["l1", "l2"] = "l1",
) -> tuple[Tensor, Tensor]:
    """How a full grid comes back from its clusters: each token as a mean of the nearest ones.

    The token is then the sum over j of weights[:, j] * refined[index[:, j]]. With w_j = exp(
    -temperature * squared distance) of the nearest, weights are w / |w|_1, the mean that the paper
    describes. The official code divides by |w|_2: k equal weights then sum to sqrt(k), and what
    comes back is too long by this factor.

    Args:
        before: [N, D] tokens before they were clustered, any floating dtype.
        centres: [K, D] their centres.
        temperature: as for `soft_cluster`.
        nearest: how many centres make a token, at most K.
        norm: "l1", or "l2" as in the official code.

    Returns:
        [N, k] float32 weights and [N, k] int64 index of centres, the nearest first.

    Raises:
        VLMCompressError: a row is NaN or infinite.

    Source: Expedit, arXiv 2210.01035, section 3; official code.
    """
    x, centres = finite(before), finite(centres)
    with torch.autocast(x.device.type, enabled=False):
        squares = _squares(x.square().sum(-1, keepdim=True), 2 * x, centres)
        distances, index = squares.sort(dim=-1, stable=True)
    # A softmax, so that weights far away from all centres do not vanish together.
    weights = (-temperature * distances[:, :nearest]).softmax(-1)
    if norm == "l2":
        weights = weights / torch.linalg.vector_norm(weights, dim=-1, keepdim=True)
    return weights, index[:, :nearest]


def _homes(size: int, parts: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device) * parts // size


def _squares(lengths: Tensor, twice: Tensor, centres: Tensor) -> Tensor:
    """[..., n, K] squared distances of points, of squared lengths [..., n, 1] and twice as long."""
    sums = lengths + centres.square().sum(-1)[..., None, :]
    return sums.sub_(twice @ centres.mT).clamp_min_(0)


def _labels(distances: Tensor, home: Tensor) -> Asking[Tensor]:
    """[B, n] the nearest of K centres, every centre taken; `distances` [B, n, K], `home` [n]."""
    labels = distances.argmin(-1)
    sizes = torch.zeros_like(distances[:, 0], dtype=torch.long)
    sizes.scatter_add_(1, labels, torch.ones_like(labels))
    # Which are empty depends on the content: the only question to the device.
    for frame, cell in (yield sizes == 0).nonzero().tolist():
        own, count = labels[frame], sizes[frame]
        spare = count.gather(0, own) > 1
        mine = spare & (home == cell)
        able = torch.where(mine.any(), mine, spare)
        taken = distances[frame, :, cell].masked_fill(~able, torch.inf).argmin(-1, keepdim=True)
        count.scatter_add_(0, own.gather(0, taken), torch.full_like(taken, -1))
        own.scatter_(0, taken, cell)
        count[cell] = 1
    return labels
