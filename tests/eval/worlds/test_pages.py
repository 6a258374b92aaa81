"""Pages and queries: what is drawn is what is named, and held-out pages are never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from vlmcompress.eval.worlds.pages import (
    CELL,
    COLUMNS,
    HEIGHT,
    WIDTH,
    Page,
    Query,
    Wanted,
    ask_page,
    collection,
    draw_page,
    make_page,
)
from vlmcompress.eval.worlds.scene import TRAIN_SEEDS, Figure


def test_a_page_follows_from_its_seed():
    assert make_page(3) == make_page(3)
    assert draw_page(make_page(3)).tobytes() == draw_page(make_page(3)).tobytes()
    assert draw_page(make_page(3)).tobytes() != draw_page(make_page(4)).tobytes()
    assert draw_page(make_page(3)).size == (WIDTH, HEIGHT)


def test_figures_lie_in_their_cells():
    for seed in range(50):
        page = make_page(seed)
        for figure, cell in zip(page.figures, page.cells, strict=True):
            row, column = divmod(cell, COLUMNS)
            assert (figure.y // CELL, figure.x // CELL) == (row, column)


def test_the_colour_of_a_figure_is_where_it_is_said_to_be():
    page = make_page(11)
    picture = np.asarray(draw_page(page)).astype(int)
    for figure in page.figures:
        if figure.glyph is None and figure.color == "red":
            red, green, blue = picture[int(figure.y), int(figure.x)]
            assert red > 150 > max(green, blue)


def page_of(*figures: tuple[str, str, str | None]) -> Page:
    made = (
        Figure(shape, color, "small", 5.0, 5.0, 5.0, 0.0, sign) for color, shape, sign in figures
    )
    return Page(0, tuple(made), tuple(range(len(figures))), (1, 2, 3))


def test_a_query_by_hand():
    page = page_of(("red", "star", "7"), ("blue", "cross", None))
    assert Query((Wanted("red star", None), Wanted("blue cross", None))).relevant(page)
    assert Query((Wanted("red star", "7"),)).relevant(page)
    assert not Query((Wanted("red star", "8"),)).relevant(page)
    assert not Query((Wanted("red star", None), Wanted("blue star", None))).relevant(page)
    assert Query((Wanted("red star", "7"), Wanted("blue cross", None))).text == (
        "red star sign 7 , blue cross"
    )


def test_a_query_names_what_is_on_its_page():
    rng = np.random.default_rng(0)
    for seed in range(50):
        page = make_page(seed)
        query = ask_page(page, rng, 3)
        assert query.relevant(page)
        assert len({one.name for one in query.wanted}) == len(query.wanted)


def test_a_collection_says_which_pages_are_relevant():
    found = collection(60, 40)
    assert found.relevant.shape == (40, 60)
    assert found.relevant[np.arange(40), np.arange(40)].all()
    assert found.relevant.sum(1).min() >= 1
    assert found.relevant.sum(1).max() <= 3
    assert found.relevant.sum() > 40
    for query, row in zip(found.queries, found.relevant, strict=True):
        assert [query.relevant(page) for page in found.pages] == row.tolist()
    assert not {page.seed for page in found.pages} & set(TRAIN_SEEDS)


def test_pages_to_train_on_are_refused():
    with pytest.raises(ValueError, match="outside the held-out range"):
        collection(3, 3, first_seed=5)
