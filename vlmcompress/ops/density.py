"""Density peaks: rows in the middle of many, and what they become when they absorb these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.anchors import BLOCK_BYTES, means, nearest_anchor, nearest_centre
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.ranking import best, ranks
from vlmcompress.ops.similarity import unit_rows

_DUPLICATE = 1e-5


def density_peaks(rows: Tensor, neighbours: int = 4) -> Tensor:
    """How much each row is the centre of a cluster (DPC-kNN).

    rho * delta: rho = exp(-mean of the squared distances to the `neighbours` nearest rows, itself
    among them); delta = distance to the nearest row of a higher rho or, for the highest of all, the
    largest distance of any two rows. Of equal rho the lower index counts as higher. Distances are
    Euclidean, divided by sqrt(D).

    Args:
        rows: [n, D] any dtype, compared in float32 (also under autocast).
        neighbours: 1 or more; all where there are fewer rows.

    Returns:
        [n] float32: log(rho * delta), which ranks as rho * delta does and does not underflow; -inf
        for the duplicate of an earlier row.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.

    Source: FastVID, arXiv 2503.11187, after Du, Ding and Jia, DPC-kNN, 2016.
    """
    rows = rows.detach().float()
    with torch.autocast(rows.device.type, enabled=False):
        # About their mean, where less cancels. What rounding leaves between duplicates goes.
        rows = rows - rows.mean(dim=0)
        squares = rows.square().sum(dim=-1)
        expect(
            (squares + squares.amax()).isfinite().all(),
            lambda: VLMCompressError(
                "density peaks need finite rows, got NaN, infinite or too large"
            ),
        )
        sums = squares[:, None] + squares
        apart = torch.sub(sums, 2 * rows @ rows.T).fill_diagonal_(0)
    apart.masked_fill_(apart <= sums.mul_(_DUPLICATE), 0)
    # Roots and quotients rise with the squares: they are taken of those that are looked at.
    count, width = len(rows), rows.shape[-1]
    nearest = apart.topk(min(neighbours, count), dim=-1, largest=False).values
    log_rho = -(nearest / width).sqrt().square().mean(dim=-1)
    rank = ranks(log_rho)
    largest = apart.max()
    apart.masked_fill_(rank <= rank[:, None], torch.inf)
    delta = torch.where(rank < count - 1, apart.amin(dim=-1), largest)
    return log_rho + (delta / width).sqrt().log()


def peak_clusters(rows: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each row joins the nearest of the `count` highest density peaks.

    Args:
        rows: [n, D] any dtype, compared and averaged in float32.
        count: from 1 to n.
        neighbours: as for `density_peaks`.

    Returns:
        [count] int64, ascending: the rows that are centres.
        [n] int64 places in them.
        [count, D] float32 means.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.
    """
    centres = best(density_peaks(rows, neighbours), count)
    nearest = nearest_centre(rows, centres)
    return centres, nearest, means(rows, nearest, count)


def absorb(rows: Tensor, anchors: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Merge each row into the anchor of the highest cosine; of equals into the first.

    An anchor goes into itself. With the n rows that went into it, itself among them, it becomes
    w * anchor + (1 - w) * mean, w = max(beta, 1 / (n + 1)).

    Args:
        rows: [n, D] any dtype, compared and averaged in float32 (also under autocast).
        anchors: [A] int64 unique, which rows are anchors; at least one.
        beta: least weight of an anchor, from 0 to 1.

    Returns:
        [n] int64, places in `anchors`, and [A, D] float32, what the anchors became.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.

    Source: FastVID, arXiv 2503.11187, density-based token merging.
    """
    rows = rows.detach().float()
    with torch.autocast(rows.device.type, enabled=False):
        nearest = nearest_anchor(rows, anchors)
        own = one_hot(nearest, len(anchors)).float()
        sizes = own.sum(dim=0)[:, None]
        weight = (1 / (sizes + 1)).clamp(min=beta)
        # A product, as sums by index are not deterministic on a GPU.
        return nearest, weight * rows[anchors] + (1 - weight) * (own.T @ rows / sizes)


def distinctive(rows: Tensor, denser: bool = False, *, max_bytes: int = BLOCK_BYTES) -> Tensor:
    """How much each row is like many and unlike those that are like fewer.

    density * delta: density = sum of the cosines with all rows, itself among them; delta = 1 - the
    highest cosine with a row of a lower density, 1 for the lowest of all.

    Args:
        rows: [n, D] any dtype, compared in float32 (also under autocast).
        denser: delta looks at rows of a higher density instead, as density peaks do.
        max_bytes: working memory for a block of rows; a block has at least one.

    Returns:
        [n] float32; a row of zeros has 0.

    Raises:
        VLMCompressError: a row is NaN, infinite or too large for float32.

    Source: RESTORE, arXiv 2606.01711, distinctive anchors.
    """
    with torch.autocast(rows.device.type, enabled=False):
        unit = unit_rows(rows)
        density = unit @ unit.sum(dim=0)
        nearest = []
        step = max(1, max_bytes // (4 * max(1, len(unit))))
        for start in range(0, len(unit), step):
            own = slice(start, start + step)
            cosines, mine = unit[own] @ unit.T, density[own, None]
            other = density > mine if denser else density < mine
            nearest.append(cosines.masked_fill_(~other, -torch.inf).amax(dim=-1))
        near = torch.cat(nearest)
    return density * torch.where(near.isfinite(), 1 - near, 1.0)
