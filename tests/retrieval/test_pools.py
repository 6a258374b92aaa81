"""Pools against loops over the grid and examples by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmcompress.errors import VLMCompressError
from vlmcompress.retrieval.pools import parse_pool
from vlmcompress.retrieval.vectors import TEXT, PageVectors
from vlmcompress.tokens import Grid, Layout

TILES = Layout.of(Grid(1, 3, 4), Grid(1, 2, 2))


def page(layout: Layout, keep: list[int] | None = None, words: int = 2) -> PageVectors:
    """Random unit vectors of a prompt with words around its page."""
    g = torch.Generator().manual_seed(0)
    places = torch.arange(len(layout)) if keep is None else torch.tensor(keep)
    places = torch.cat([torch.full((words,), TEXT), places, torch.tensor([TEXT])])
    vectors = torch.randn(len(places), 8, generator=g, dtype=torch.float64)
    return PageVectors(normalize(vectors, dim=-1), places, layout)


def cell(layout: Layout, place: int) -> tuple[int, int, int]:
    """Tile, row and column of a raster index, by counting."""
    for tile, grid in enumerate(layout.parts):
        if place < grid.h * grid.w:
            return tile, place // grid.w, place % grid.w
        place -= grid.h * grid.w
    raise AssertionError


def mean(vectors: list[Tensor]) -> Tensor:
    return normalize(torch.stack(vectors).mean(0), dim=-1)


LABELS = {
    "global": lambda tile, row, column: 0,
    "tiles": lambda tile, row, column: tile,
    "rows": lambda tile, row, column: (tile, row),
    "spatial": lambda tile, row, column: (tile, row // 2, column // 2),
    "spatial(size=3)": lambda tile, row, column: (tile, row // 3, column // 3),
}


@pytest.mark.parametrize("keep", [None, [0, 1, 5, 6, 11, 12, 15]])
@pytest.mark.parametrize("spec", LABELS)
def test_means_by_place(spec, keep):
    given = page(TILES, keep)
    groups: dict[object, list[Tensor]] = {}
    for vector, place in zip(given.vectors, given.places.tolist(), strict=True):
        if place != TEXT:
            groups.setdefault(LABELS[spec](*cell(TILES, place)), []).append(vector)
    expected = [mean(groups[label]) for label in sorted(groups)]
    words = [v for v, place in zip(given.vectors, given.places, strict=True) if place == TEXT]
    found = parse_pool(spec).pool(given)
    assert torch.allclose(found, torch.stack([*expected, *words]), atol=1e-6)
    assert found.dtype == given.vectors.dtype
    assert len(parse_pool(spec).pool(given.visual)) == len(expected)


def test_a_window_slides_over_the_rows_of_a_tile():
    given = page(TILES).visual
    found = parse_pool("rows(window=3)").pool(given)
    rows = [
        given.vectors[[p for p in range(16) if cell(TILES, p)[:2] == key]]
        for key in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    windows = [rows[:2], rows[:3], rows[1:3], rows[3:], rows[3:]]
    expected = [mean(list(torch.cat(window))) for window in windows]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    assert torch.equal(parse_pool("rows(window=1)").pool(given), parse_pool("rows").pool(given))


def pairwise(vectors: Tensor, groups: list[list[int]], ward: bool) -> tuple[float, int, int]:
    """The nearest two groups: mean cosine distance, or Ward's distance of the means."""
    best = (float("inf"), 0, 0)
    for a in range(len(groups)):
        for b in range(a + 1, len(groups)):
            one, two = vectors[groups[a]], vectors[groups[b]]
            if ward:
                size = 2 * len(one) * len(two) / (len(one) + len(two))
                apart = float((size * (one.mean(0) - two.mean(0)).square().sum()).sqrt())
            else:
                apart = float((1 - one @ two.T).mean())
            best = min(best, (apart, a, b))
    return best


def agglomerate(vectors: Tensor, ward: bool, count: int, distance: float) -> list[list[int]]:
    groups = [[number] for number in range(len(vectors))]
    while len(groups) > count:
        apart, a, b = pairwise(vectors, groups, ward)
        if apart > distance:
            break
        groups[a] += groups.pop(b)
    return sorted(groups, key=min)


@pytest.mark.parametrize("linkage", ["average", "ward"])
@pytest.mark.parametrize(
    ("asked", "count", "distance"),
    [("factor=2", 8, 9.0), ("factor=3.0", 5, 9.0), ("count=4", 4, 9.0), ("distance=0.9", 1, 0.9)],
)
def test_clusters_are_those_of_a_plain_loop(asked, count, distance, linkage):
    given = page(TILES, words=0).visual
    groups = agglomerate(given.vectors, linkage == "ward", count, distance)
    found = parse_pool(f"hierarchical({asked}, linkage={linkage!r})").pool(given)
    expected = [mean([given.vectors[member] for member in group]) for group in groups]
    assert 1 < len(groups) < 16
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_clusters_by_hand():
    x, y = [1.0, 0.0], [0.0, 1.0]
    vectors = torch.tensor([y, x, x, y, x])
    given = PageVectors(vectors, torch.arange(5), Layout.of(Grid(1, 1, 5)))
    assert parse_pool("hierarchical(distance=0.5)").pool(given).tolist() == [y, x]
    one = PageVectors(vectors[:1], torch.arange(1), Layout.of(Grid(1, 1, 1)))
    assert parse_pool("hierarchical(count=3)").pool(one).tolist() == [y]


def test_more_clusters_than_vectors_leave_all():
    given = page(TILES)
    assert torch.allclose(parse_pool("hierarchical(count=99)").pool(given), given.vectors)


def test_without_scipy_the_extra_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(VLMCompressError, match=r"pip install 'vlmcompress\[retrieval\]'"):
        parse_pool("hierarchical(factor=2)").pool(page(TILES))
