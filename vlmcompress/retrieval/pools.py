"""Fewer vectors for a page after the model is done: means over its grid, or clusters.

All are of unit length, as the vectors of the models are. Pools by place look at visual tokens alone
and leave those of the prompt as they are; tokens that a method dropped count for none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmcompress.errors import VLMCompressError
from vlmcompress.files.untrusted import short
from vlmcompress.methods.composition.spec import read_call
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.registry import Registry, unknown
from vlmcompress.retrieval.vectors import PageVectors


class Pool(ABC):
    """A way to make fewer vectors of those of a page."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))

    @abstractmethod
    def pool(self, page: PageVectors) -> Tensor:
        """[k, d] unit vectors."""


class _ByPlace(Pool):
    """Means of groups of visual tokens; the vectors of the prompt follow behind."""

    def pool(self, page: PageVectors) -> Tensor:
        return torch.cat([page.means(self.groups(page.cells())), page.words])

    @abstractmethod
    def groups(self, cells: Tensor) -> Tensor:
        """[G, m] bool from tile, row and column of each visual token, [m, 3]."""


@dataclass(frozen=True)
class Global(_ByPlace):
    """The mean of all visual tokens: one vector."""

    name: ClassVar[str] = "global"

    def groups(self, cells: Tensor) -> Tensor:
        return cells.new_ones(1, len(cells), dtype=torch.bool)


@dataclass(frozen=True)
class Tiles(_ByPlace):
    """The mean of each tile that the model cuts a page into; of the page where it cuts none."""

    name: ClassVar[str] = "tiles"

    def groups(self, cells: Tensor) -> Tensor:
        return _alike(cells[:, :1])


@dataclass(frozen=True)
class Rows(_ByPlace):
    """The mean of each row, or of each row and its neighbours: a sliding window."""

    name: ClassVar[str] = "rows"
    window: int = 1
    """Rows that are averaged, an odd number; at the edges those that there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.window % 2 == 0:
            raise VLMCompressError(f"rows: window must be odd and 1 or more, got {self.window}")

    def groups(self, cells: Tensor) -> Tensor:
        rows = torch.unique(cells[:, :2], dim=0)
        same = torch.eq(rows[:, None, 0], cells[:, 0])
        apart = (rows[:, None, 1] - cells[:, 1]).abs()
        return same & torch.le(apart, self.window // 2)


@dataclass(frozen=True)
class Spatial(_ByPlace):
    """The mean of each block of neighbours on the grid; smaller blocks at its right and bottom."""

    name: ClassVar[str] = "spatial"
    size: int = 2
    """Tokens along a side of a block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise VLMCompressError(f"spatial: size must be 1 or more, got {self.size}")

    def groups(self, cells: Tensor) -> Tensor:
        return _alike(cells // torch.tensor([1, self.size, self.size], device=cells.device))


def _alike(labels: Tensor) -> Tensor:
    """[G, m] bool: which of the rows of `labels` [m, c] are equal, in ascending order."""
    kinds, group = torch.unique(labels, dim=0, return_inverse=True)
    return torch.eq(torch.arange(len(kinds), device=group.device)[:, None], group)


@dataclass(frozen=True)
class Hierarchical(Pool):
    """The mean of each cluster of similar vectors (agglomerative clustering by cosine distance).

    Clusters everything that it is given: `embed(..., tokens="visual")` leaves the prompt out. Give
    one of the three. Of `linkage="ward"` the distances are those of the unit vectors themselves.

    Source: hierarchical token pooling, arXiv 2409.14683, and ColPali, arXiv 2407.01449.
    """

    name: ClassVar[str] = "hierarchical"
    factor: float | None = None
    """How many vectors become one in the mean; 2 halves them."""
    count: int | None = None
    """How many vectors are left."""
    distance: float | None = None
    """Clusters that are further apart stay apart; 0.1 is a cosine of 0.9."""
    linkage: Literal["average", "ward"] = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            name: value
            for name in ("factor", "count", "distance")
            if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            raise VLMCompressError(
                "hierarchical: give one of factor, count and distance, "
                f"got {', '.join(given) or 'none'}"
            )
        ((name, value),) = given.items()
        least = 0 if name == "distance" else 1
        if not value >= least:
            raise VLMCompressError(f"hierarchical: {name} must be {least} or more, got {value}")

    def pool(self, page: PageVectors) -> Tensor:
        if not len(page.vectors):  # a method may leave none
            return page.vectors
        vectors = normalize(page.vectors.float(), dim=-1)
        labels = self._labels(vectors)
        order = labels.new_full((int(labels.max()) + 1,), len(labels))
        order = order.scatter_reduce(0, labels, torch.arange(len(labels)), "amin")
        # In the order of the first vector of each.
        place = order.argsort().argsort()[labels].to(vectors.device)
        sums = vectors.new_zeros(len(order), vectors.shape[1]).index_add_(0, place, vectors)
        return normalize(sums, dim=-1).to(page.vectors.dtype)

    def _labels(self, vectors: Tensor) -> Tensor:
        """[n] int64 from 0, on the CPU: the cluster of each vector."""
        if len(vectors) == 1:
            return torch.zeros(1, dtype=torch.long)
        try:
            from scipy.cluster.hierarchy import fcluster, linkage
        except ImportError as error:
            raise VLMCompressError(
                "hierarchical pooling needs scipy: pip install 'vlmcompress[retrieval]'"
            ) from error
        metric = "cosine" if self.linkage == "average" else "euclidean"
        tree = linkage(vectors.double().cpu().numpy(), self.linkage, metric)
        if self.distance is not None:
            found = fcluster(tree, self.distance, "distance")
        else:
            count = self.count or max(1, round(len(vectors) / (self.factor or 1)))
            found = fcluster(tree, min(count, len(vectors)), "maxclust")
        return torch.from_numpy(found).long() - 1


POOLS: Registry[Pool] = Registry("pool", "vlmcompress.retrieval.pools:Pool")
for _kind in (Global, Tiles, Rows, Spatial, Hierarchical):
    POOLS.register(_kind.name, _kind)

_EXAMPLE = 'write for example "rows", "rows(window=3)" or "hierarchical(factor=2)"'


def parse_pool(spec: str | Pool | None) -> Pool | None:
    """The pool that a text such as "rows(window=3)" describes; None stays None.

    Raises:
        VLMCompressError: no such pool or option, or a value that is not possible.
    """
    if spec is None or isinstance(spec, Pool):
        return spec
    if not isinstance(spec, str):
        raise VLMCompressError(f"{short(spec)} is no pool: {_EXAMPLE}")
    name, options = read_call(spec, "pool", _EXAMPLE)
    kind: Any = POOLS.get(name)
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    found: Pool = kind(**options)
    return found
