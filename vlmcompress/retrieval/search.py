"""Exact MaxSim over vectors of any number per page, and search in two stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.arguments import check_count
from vlmcompress.errors import VLMCompressError
from vlmcompress.files.untrusted import short

_ELEMENTS = 2**24
"""Similarities that are held at once, 64 MB."""


@dataclass(frozen=True)
class Hits:
    """The best pages of each query, the best first."""

    pages: Tensor
    """[Q, k] int64: their places in the list of pages."""
    scores: Tensor
    """[Q, k] float32: MaxSim, the sum over a query's vectors of the largest dot product with any
    vector of the page."""


class Index:
    """Pages to be searched, packed once; several searches share it."""

    def __init__(self, pages: Sequence[Tensor], coarse: Sequence[Tensor] | None = None) -> None:
        """Pack the pages.

        Args:
            pages: [n_i, d] of each, any floating dtype.
            coarse: [m_i, d] of the same pages, fewer of each: what candidates are chosen by.

        Raises:
            VLMCompressError: no page, a page without vectors, or vectors of different widths.
        """
        self._pages = _Packed(pages, "page")
        self._coarse = None if coarse is None else _Packed(coarse, "coarse page", self._pages.width)
        if self._coarse is not None and len(self._coarse) != len(pages):
            raise VLMCompressError(
                f"{len(pages)} pages but {len(self._coarse)} coarse pages: give one for each"
            )

    def search(self, queries: Sequence[Tensor], k: int = 10, candidates: int | None = None) -> Hits:
        """The `k` best pages of each query, or all where there are fewer.

        Args:
            queries: [q_i, d] of each, on the device of the pages.
            k: how many.
            candidates: with coarse pages, how many of them are compared exactly.

        Raises:
            VLMCompressError: vectors of another width, or a count that is not possible.
        """
        _check(queries, "query", self._pages.width)
        check_count("k", k)
        k = min(k, len(self._pages))
        if self._coarse is None:
            if candidates is not None:
                raise VLMCompressError("candidates are chosen by coarse pages: give coarse=")
            return _best(self._pages.maxsim(queries), k)
        if candidates is not None:
            check_count("candidates", candidates)
        count = 10 * k if candidates is None else candidates
        if count < k:
            raise VLMCompressError(f"{count} candidates cannot give the {k} best pages")
        rough = _best(self._coarse.maxsim(queries), min(count, len(self._pages)))
        found = [self._among(*each, k) for each in zip(queries, rough.pages, strict=True)]
        return Hits(*(torch.stack(part) for part in zip(*found, strict=True)))

    def _among(self, query: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The best of some pages."""
        places = candidates.sort().values
        exact = _Packed([self._pages[place] for place in places.tolist()], "page")
        best = _best(exact.maxsim([query]), k)
        return places[best.pages[0]], best.scores[0]


def search(
    queries: Sequence[Tensor],
    pages: Sequence[Tensor],
    k: int = 10,
    *,
    coarse: Sequence[Tensor] | None = None,
    candidates: int | None = None,
) -> Hits:
    """The `k` best pages of each query by MaxSim (late interaction).

    With `coarse`, pooled vectors of the same pages, in two stages: their MaxSim chooses
    `candidates` (by default 10 for each page asked for), which are then compared with all their
    vectors. Of equal scores the earlier page comes first. Nothing is padded, and the memory for
    similarities is bounded whatever the number of pages. For several searches of the same pages
    make an `Index` once.

    Args:
        queries: [q_i, d] of each, as `vlmcompress.embed(..., texts=...)` gives them.
        pages: [n_i, d] of each.
        k: how many, at least 1; all where there are fewer pages.
        coarse: [m_i, d] of each page.
        candidates: how many pages the first stage leaves, at least k.

    Raises:
        VLMCompressError: nothing to search, vectors of different widths, an impossible count.

    Source: ColBERT (arXiv 2004.12832) for MaxSim; Visual RAG Toolkit for the two stages.
    """
    return Index(pages, coarse).search(queries, k, candidates)


class _Packed:
    """Pages of as many vectors side by side, so that none is padded."""

    def __init__(self, pages: Sequence[Tensor], kind: str, width: int | None = None) -> None:
        _check_list(pages, kind)
        if not len(pages):
            raise VLMCompressError(f"there is no {kind} to search")
        _check(pages, kind, width)
        self.width = pages[0].shape[-1]
        places = defaultdict(list)
        for place, page in enumerate(pages):
            places[len(page)].append(place)
        self._blocks = {
            length: (torch.tensor(same), torch.stack([pages[place] for place in same]))
            for length, same in places.items()
        }
        self._of = [(len(page), 0) for page in pages]
        for length, (same, _) in self._blocks.items():
            for number, place in enumerate(same.tolist()):
                self._of[place] = length, number

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, place: int) -> Tensor:
        length, number = self._of[place]
        return self._blocks[length][1][number]

    @torch.no_grad()
    def maxsim(self, queries: Sequence[Tensor]) -> Tensor:
        """[Q, P] float32 scores."""
        device = next(iter(self._blocks.values()))[1].device
        scores = torch.zeros(len(queries), len(self), device=device)
        lengths = torch.tensor([len(query) for query in queries])
        tokens = torch.cat(list(queries)).to(device, torch.float32)
        owners = torch.arange(len(queries)).repeat_interleave(lengths).to(device)
        for rows in _chunks(len(tokens), _ELEMENTS // max(self._blocks)):
            for places, vectors in self._parts(rows.stop - rows.start):
                similar = torch.einsum("td,pnd->tpn", tokens[rows], vectors.float())
                sums = scores.new_zeros(len(queries), len(places))
                sums.index_add_(0, owners[rows], similar.amax(-1))
                scores[:, places.to(device)] += sums
        return scores

    def _parts(self, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Places [p] and vectors [p, n, d] of pages whose similarities fit in memory."""
        for length, (places, vectors) in self._blocks.items():
            for some in _chunks(len(places), _ELEMENTS // (tokens * length)):
                yield places[some], vectors[some]


def _chunks(total: int, size: int) -> Iterator[slice]:
    size = max(size, 1)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _best(scores: Tensor, k: int) -> Hits:
    """Sorted, the earlier of equals first; `topk` leaves their order open."""
    if not scores.isfinite().all():
        raise VLMCompressError("a query or a page holds numbers that are not finite")
    ordered = scores.sort(dim=1, descending=True, stable=True)
    return Hits(ordered.indices[:, :k], ordered.values[:, :k])


def _check_list(items: object, kind: str) -> None:
    if not isinstance(items, Sequence | Tensor) or isinstance(items, str):
        raise VLMCompressError(f"{short(items)} is no list of tensors [n, d], one for each {kind}")


def _check(items: Sequence[Tensor], kind: str, width: int | None) -> None:
    """Raise unless these are vectors of `width` numbers, or of as many as those of the first."""
    _check_list(items, kind)
    if not len(items):
        raise VLMCompressError(f"there is no {kind}")
    for number, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise VLMCompressError(
                f"{kind} {number} is no tensor [n, d], but of type {type(item).__name__}"
            )
        if item.dim() != 2 or not len(item) or item.shape[1] != (width or item.shape[1]):
            raise VLMCompressError(
                f"{kind} {number} has the shape {tuple(item.shape)}: give at least one vector"
                + (f" of {width} numbers" if width else "")
            )
        width = width or item.shape[1]
