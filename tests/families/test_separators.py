"""Separators among features: where they are, and that they are told from pieces of the picture."""

from __future__ import annotations

import pytest
import torch
from by_hand import SEPARATORS, separators
from model_case import case_of
from scope import TESTED_HERE
from torch.nn.functional import cosine_similarity

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.families.separators import Views, separated, with_newlines
from vlmcompress.patches.families.table import ROWS
from vlmcompress.tokens import Grid, Layout, Separator


def places(layout: Layout) -> list[int]:
    return [separator.place for separator in layout.separators]


def test_one_behind_each_row():
    layout = separated("row", 2 * 4, (1, 4, 6))
    assert layout == Layout((Grid(1, 2, 3),), (Separator(3, 0, 3), Separator(7, 3, 6)))


@pytest.mark.parametrize(
    ("words", "count", "shape", "grid", "where"),
    [
        ("row", 20, (8, 8), Grid(1, 4, 4), [4, 9, 14, 19]),
        ("row", 20, (10, 6), Grid(1, 5, 3), [3, 7, 11, 15, 19]),
        ("row", 20, None, Grid(1, 4, 4), [4, 9, 14, 19]),
        ("row", 16, (2, 4, 6), Grid(2, 2, 3), [3, 7, 11, 15]),  # frames
        ("begin row end", 22, (1, 8, 8), Grid(1, 4, 4), [0, 5, 10, 15, 20, 21]),
        ("end", 145, None, Grid(1, 12, 12), [144]),
        ("begin end", 8, (4, 6), Grid(1, 2, 3), [0, 7]),
        ("row end", 273, None, Grid(1, 16, 16), [*range(16, 272, 17), 272]),
    ],
)
def test_layouts(words, count, shape, grid, where):
    layout = separated(words, count, shape)
    assert layout.parts == (grid,)
    assert sorted(places(layout)) == where
    assert layout.placeholders == count


def test_sharper_views_come_before_the_whole():
    # DeepSeek-OCR 2: tiles of 768 pixels have 12x12 tokens, the whole of 1024 has 16x16.
    apart = separated("end", 2 * 144 + 256 + 1, None, Views(2, 1, joined=False, size=0.75))
    assert apart.parts == (Grid(1, 12, 12), Grid(1, 12, 12), Grid(1, 16, 16))
    assert places(apart) == [544]
    # Unlimited-OCR: tiles of 640 are joined, and rows end with newlines: 20 rows of 30, 16 of 16.
    joined = separated("row end", 20 * 31 + 16 * 17 + 1, None, Views(3, 2, joined=True, size=0.625))
    assert joined.parts == (Grid(1, 20, 30), Grid(1, 16, 16))
    assert places(joined)[:2] == [30, 61]
    assert places(joined)[19:] == [619, *range(636, 892, 17), 892]
    assert joined.separators[19] == Separator(619, 570, 600)
    assert joined.separators[20] == Separator(636, 600, 616)


@pytest.mark.parametrize(
    ("places", "grids", "rows"),
    [
        ([9, 15], [Grid(1, 2, 2), Grid(1, 2, 5)], [(4, 9), (9, 14)]),  # behind an overview
        ([3, 7, 11], [Grid(1, 3, 3)], [(0, 3), (3, 6), (6, 9)]),
        ([9], [Grid(1, 3, 3)], [(0, 9)]),  # no rows
        ([2, 9, 11], [Grid(1, 3, 3)], [(0, 9)] * 3),  # of different lengths
        ([9, 10, 11], [Grid(1, 3, 3)], [(0, 9)] * 3),  # without a token
    ],
)
def test_newlines_end_rows(places, grids, rows):
    newlines = torch.zeros(places[-1] + 1, dtype=torch.bool)
    layout = with_newlines(newlines.index_fill(0, torch.tensor(places), True))
    assert (layout.parts, layout.placeholders) == (tuple(grids), places[-1] + 1)
    assert [separator.place for separator in layout.separators] == places
    assert [(separator.start, separator.stop) for separator in layout.separators] == rows


@pytest.mark.parametrize(
    ("words", "count", "said"),
    [
        ("rows", 20, "must be words of begin, row, end, got 'rows'"),
        ("", 20, "must be words of"),
        ("row", 1, "no grid has 1 features with separators 'row'"),
        ("begin end", 2, "no grid has 2 features"),
    ],
)
def test_what_is_no_rule_is_refused(words, count, said):
    with pytest.raises(UnsupportedModelError, match=said):
        separated(words, count, (8, 8))


def test_every_row_with_separators_is_written_down_by_hand():
    said = {name for name, row in ROWS.items() if row.separators}
    assert SEPARATORS.keys() == said | {"granite4_vision"}, "the latter has a newline that is seen"
    assert SEPARATORS.keys() <= set(TESTED_HERE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEPARATORS)
def test_what_stands_there_does_not_depend_on_the_picture(name):
    """And all else does: other pictures have other features, but the same separators."""
    case = case_of(name)

    def features(media):
        names = ("pixel_values", "image_grid_thw", "image_sizes")
        known = {name: value for name, value in media.items() if name in names}
        with torch.no_grad():
            output = case.parts.base.get_image_features(**known, return_dict=True)
        return case.parts.family.features(output)[1]

    one = features(case.media)
    other = features(case.media | {"pixel_values": case.media["pixel_values"] * -1})
    same = cosine_similarity(one, other) > 1 - 1e-5
    grid = case.media.get("image_grid_thw")
    by_hand = separators(name, len(one), None if grid is None else grid[1])
    assert same.nonzero()[:, 0].tolist() == sorted(place for place, _, _ in by_hand)
