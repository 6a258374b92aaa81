"""MaxSim and the two stages against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import vlmcompress
from vlmcompress.errors import VLMCompressError
from vlmcompress.retrieval import search as module
from vlmcompress.retrieval.search import Index

G = torch.Generator().manual_seed(0)


def vectors(*lengths: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    made = [normalize(torch.randn(length, 8, generator=G), dim=-1) for length in lengths]
    return [each.to(dtype) for each in made]


QUERIES = vectors(3, 1, 7)
PAGES = vectors(4, 9, 4, 1, 9, 4, 30)
COARSE = [page.mean(0, keepdim=True) for page in PAGES]


def maxsim(query: Tensor, page: Tensor) -> float:
    """Vector by vector."""
    return sum(max(float(q.float() @ p.float()) for p in page) for q in query)


def ranked(query: Tensor, pages: list[Tensor], among: list[int]) -> list[tuple[float, int]]:
    return sorted(((maxsim(query, pages[place]), -place) for place in among), reverse=True)


def check(hits, expected: list[list[tuple[float, int]]]) -> None:
    for row, (places, scores) in enumerate(zip(hits.pages, hits.scores, strict=True)):
        wanted = expected[row][: len(places)]
        assert places.tolist() == [-place for _, place in wanted]
        assert scores.tolist() == pytest.approx([score for score, _ in wanted], abs=1e-5)


@pytest.mark.parametrize("elements", [1, 20, 100, 2**24])
@pytest.mark.parametrize("k", [1, 3, 99])
def test_exact_search_is_brute_force_whatever_fits_in_memory(monkeypatch, elements, k):
    monkeypatch.setattr(module, "_ELEMENTS", elements)
    expected = [ranked(query, PAGES, list(range(len(PAGES)))) for query in QUERIES]
    hits = vlmcompress.search(QUERIES, PAGES, k)
    assert hits.pages.shape == (3, min(k, len(PAGES)))
    check(hits, expected)


def test_the_similarities_that_are_held_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "_ELEMENTS", 100)
    real, sizes = torch.einsum, []

    def watched(*given):
        found = real(*given)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(torch, "einsum", watched)
    vlmcompress.search(QUERIES, PAGES)
    assert max(sizes) <= 100 < 11 * sum(map(len, PAGES))


@pytest.mark.parametrize("candidates", [2, 4, 7, 50])
def test_two_stages_are_exact_among_the_candidates(candidates):
    expected = []
    for query in QUERIES:
        rough = ranked(query, COARSE, list(range(len(PAGES))))[:candidates]
        expected.append(ranked(query, PAGES, [-place for _, place in rough]))
    hits = vlmcompress.search(QUERIES, PAGES, 2, coarse=COARSE, candidates=candidates)
    check(hits, expected)


def test_enough_candidates_give_what_one_stage_gives():
    one = vlmcompress.search(QUERIES, PAGES, 3)
    two = vlmcompress.search(QUERIES, PAGES, 3, coarse=COARSE)
    few = vlmcompress.search(QUERIES, PAGES, 1, coarse=COARSE, candidates=1)
    assert torch.equal(one.pages, two.pages)
    assert torch.allclose(one.scores, two.scores, atol=1e-5)
    assert not torch.equal(one.pages[:, :1], few.pages)


def test_equal_pages_keep_their_order():
    twice = [PAGES[1], PAGES[0], PAGES[1], PAGES[0]]
    for hits in (
        vlmcompress.search(QUERIES, twice),
        vlmcompress.search(QUERIES, twice, coarse=COARSE[:1] * 4),
    ):
        for row in hits.pages.tolist():
            assert row in ([0, 2, 1, 3], [1, 3, 0, 2])


def test_equal_pages_keep_their_order_whatever_chose_them():
    (middle,) = COARSE[0]
    coarse = [(share * middle)[None] for share in (-1, 0, 1)]
    hits = vlmcompress.search([middle[None]], PAGES[:1] * 3, coarse=coarse)
    assert hits.pages.tolist() == [[0, 1, 2]]


def test_half_precision_is_added_up_in_float32():
    pages = [page.half() for page in PAGES]
    hits = vlmcompress.search([query.half() for query in QUERIES], pages)
    assert hits.scores.dtype == torch.float32
    check(hits, [ranked(q.half(), pages, list(range(len(pages)))) for q in QUERIES])


def test_an_index_is_searched_again():
    index = Index(PAGES, COARSE)
    for queries in (QUERIES, QUERIES[1:]):
        hits = index.search(queries, 2)
        assert torch.equal(hits.pages, vlmcompress.search(queries, PAGES, 2, coarse=COARSE).pages)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], PAGES), "there is no query"),
        ((QUERIES, []), "there is no page to search"),
        ((QUERIES, [PAGES[0], torch.zeros(0, 8)]), r"page 1 has the shape \(0, 8\): give at least"),
        ((vectors(2), [torch.zeros(2, 9)]), r"query 0 has the shape \(2, 8\): .* of 9 numbers"),
        ((QUERIES, PAGES, 0), "k must be a whole number, 1 or more, got 0"),
        ((QUERIES, PAGES, "3"), "k must be a whole number, 1 or more, got '3'"),
        ((None, PAGES), "None is no list of tensors"),
        ((QUERIES, "pages"), "'pages' is no list of tensors"),
        ((QUERIES, [torch.tensor(1.0)]), r"page 0 has the shape \(\)"),
        ((QUERIES, [page.numpy() for page in PAGES]), "page 0 is no tensor .* ndarray"),
        ((QUERIES, (PAGES, PAGES)), "page 0 is no tensor .* list"),
        ((QUERIES, [*PAGES, torch.full((2, 8), torch.nan)]), "not finite"),
    ],
)
def test_what_cannot_be_searched(given, message):
    with pytest.raises(VLMCompressError, match=message):
        vlmcompress.search(*given)


def test_impossible_candidates():
    with pytest.raises(VLMCompressError, match="candidates are chosen by coarse pages"):
        vlmcompress.search(QUERIES, PAGES, candidates=3)
    with pytest.raises(VLMCompressError, match="2 candidates cannot give the 3 best pages"):
        vlmcompress.search(QUERIES, PAGES, 3, coarse=COARSE, candidates=2)
    with pytest.raises(VLMCompressError, match="candidates must be a whole number"):
        vlmcompress.search(QUERIES, PAGES, 3, coarse=COARSE, candidates=4.5)
    with pytest.raises(VLMCompressError, match="coarse page 0 has the shape"):
        vlmcompress.search(QUERIES, PAGES, 3, coarse=[page[:, :4] for page in COARSE])
    with pytest.raises(VLMCompressError, match="7 pages but 1 coarse pages: give one for each"):
        vlmcompress.search(QUERIES, PAGES, coarse=COARSE[:1])
