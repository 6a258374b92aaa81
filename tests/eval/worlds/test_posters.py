"""Posters: the same seed gives the same bytes, and every question has exactly one right answer."""

from collections import Counter

import numpy as np
import pytest

from vlmcompress.eval.worlds.posters.draw import SIDE, draw_poster, render_poster
from vlmcompress.eval.worlds.posters.poster import (
    CELLS,
    GLYPHS,
    HIGHEST_BAR,
    IMAGE_SIZE,
    make_poster,
    patches_of,
)
from vlmcompress.eval.worlds.posters.questions import (
    NUMBERS,
    PLURALS,
    POSTER_KINDS,
    ask_poster,
    held_out_posters,
)
from vlmcompress.eval.worlds.scene import CELL, HELD_OUT_SEEDS, PATCH_SIZE, SHAPES, TRAIN_SEEDS

SEEDS = range(300)


def questions(kind):
    """Many questions of a kind, each with its poster."""
    for seed in SEEDS:
        poster = make_poster(seed)
        for wording in (0, 1):
            question = ask_poster(poster, kind, np.random.default_rng([seed, wording]), wording)
            if question is not None:
                assert question.kind == kind
                assert question.wording == wording
                yield poster, question


def test_a_seed_gives_the_same_poster_and_the_same_bytes():
    for seed in range(5):
        picture, cover = render_poster(make_poster(seed))
        assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert cover.shape == (len(make_poster(seed).items), SIDE, SIDE)
        assert np.array_equal(picture, np.asarray(draw_poster(make_poster(seed))))
    assert make_poster(0) != make_poster(1)
    assert not np.array_equal(render_poster(make_poster(0))[0], render_poster(make_poster(1))[0])


def test_the_picture_of_a_poster_never_changes_unnoticed():
    # As for scenes: other bytes are another version of the world, and want other weights.
    total = sum(
        int(render_poster(make_poster(seed))[0].astype(np.int64).sum()) for seed in range(20)
    )
    assert total == pytest.approx(272_484_024, rel=1e-4)


def test_there_are_576_patches():
    assert SIDE * SIDE == 576


def test_nothing_lies_on_anything_else():
    for seed in SEEDS:
        poster = make_poster(seed)
        taken = np.zeros((CELLS, CELLS), dtype=int)
        for item in poster.items:
            extent = 2 if item.large else 1
            taken[item.row : item.row + extent, item.column : item.column + extent] += 1
            if item.in_list:
                taken[item.row, item.column + 1] += 1
        if poster.chart is not None:
            chart = poster.chart
            taken[chart.row : chart.row + 3, chart.column : chart.column + 3] += 1
        assert taken.max() == 1


def test_items_and_plates_stay_in_their_cells_and_apart():
    for seed in SEEDS:
        for item in make_poster(seed).items:
            left, top = item.column * CELL, item.row * CELL
            extent = CELL * (2 if item.large else 1)
            assert left <= item.x - item.radius < item.x + item.radius <= left + extent
            assert top <= item.y - item.radius
            bottom = top + extent
            if item.plate is not None:
                rows, columns = zip(*patches_of(item.plate), strict=True)
                ends = [column.stop * PATCH_SIZE for column in columns]
                start = columns[0].start * PATCH_SIZE
                cell = left + CELL if item.in_list else left
                assert cell <= start < max(ends) <= cell + extent
                assert set(item.plate.text) <= set(GLYPHS)
                if not item.in_list:
                    bottom = rows[0].start * PATCH_SIZE
            assert item.y + item.radius <= bottom


def test_small_things_are_a_hundredth_and_large_ones_ten_times_that():
    areas = [
        (2 * item.radius) ** 2 / IMAGE_SIZE**2 for seed in SEEDS for item in make_poster(seed).items
    ]
    assert np.mean(np.array(areas) <= 0.01) > 0.3
    assert max(areas) > 0.08


def test_bars_are_as_high_as_is_said():
    charts = [make_poster(seed) for seed in SEEDS if make_poster(seed).chart]
    assert len(charts) > 50
    for poster in charts[:40]:
        picture = render_poster(poster)[0].astype(int)
        chart = poster.chart
        assert len({bar.value for bar in chart.bars}) == len(chart.bars)
        assert len({bar.color for bar in chart.bars}) == len(chart.bars)
        for bar in chart.bars:
            assert 1 <= bar.value <= HIGHEST_BAR
            column = picture[: chart.base * PATCH_SIZE, bar.column * PATCH_SIZE + 4]
            own = column[-1]
            height = next(n for n, pixel in enumerate(column[::-1]) if (pixel != own).any())
            assert height == bar.value * PATCH_SIZE


@pytest.mark.parametrize("kind", POSTER_KINDS)
def test_kinds_are_asked_often_enough_and_in_two_wordings(kind):
    asked = list(questions(kind))
    assert len(asked) > 80
    texts = {question.wording: question.text.split()[0] for _, question in asked}
    assert texts[0] != texts[1]


def meant_by(poster, text):
    """The items that "object at the PLACE", a shape or "COLOR figure" in a question means."""
    if " at the " in text:
        place = text.split(" at the ")[1].removesuffix(" ?").removesuffix(" have")
        return [item for item in poster.items if item.place == place]
    named = set(text.split())
    figures = [item for item in poster.items if item.color is not None]
    if "figure" in named:
        return [item for item in figures if item.color in named]
    return [item for item in figures if item.kind in named]


@pytest.mark.parametrize(("kind", "attribute"), [("color", "color"), ("shape", "kind")])
def test_color_and_shape_are_those_of_the_only_figure_that_is_meant(kind, attribute):
    ways = Counter()
    for poster, question in questions(kind):
        meant = meant_by(poster, question.text)
        assert [getattr(item, attribute) for item in meant] == [question.answer]
        assert question.about == (poster.items.index(meant[0]),)
        ways["at" in question.text.split()] += 1
    assert min(ways[True], ways[False]) > 20


def test_naming_is_about_the_only_thing_in_a_place():
    for poster, question in questions("naming"):
        place = question.text.split(" at the ")[1].removesuffix(" ?")
        meant = [item for item in poster.items if item.place == place]
        assert [item.name for item in meant] == [question.answer]


def test_places_belong_to_the_only_one_of_a_name():
    for poster, question in questions("place"):
        name = question.text.split(" is the ")[1].removesuffix(" ?")
        assert [item.place for item in poster.items if item.name == name] == [question.answer]


def test_counts_are_right_and_reach_nine():
    seen = Counter()
    for poster, question in questions("count"):
        words = question.text.split()
        if "figures" in words:
            color = words[words.index("figures") - 1]
            number = sum(item.color == color for item in poster.items)
            bars = poster.chart.bars if poster.chart else ()
            assert color not in {bar.color for bar in bars}
        else:
            plural = next(word for word in words if word in PLURALS.values())
            number = sum(PLURALS[item.kind] == plural for item in poster.items)
        assert question.answer == NUMBERS[number - 1]
        seen[number] += 1
    assert set(seen) == set(range(1, 10))


@pytest.mark.parametrize("kind", ["reading", "list"])
def test_reading_gives_the_signs_of_the_plate_one_by_one(kind):
    lengths = set()
    for poster, question in questions(kind):
        name = question.text.removesuffix(" have ?").removesuffix(" ?").split(" the ")[1]
        meant = [item for item in poster.items if item.name == name]
        assert len(meant) == 1
        assert meant[0].in_list == (kind == "list")
        assert question.answer.split() == list(meant[0].plate.text)
        lengths.add(len(meant[0].plate.text))
    assert lengths == ({2, 3} if kind == "reading" else {2, 3, 4})


def test_presence_is_even_and_true():
    said = Counter()
    for poster, question in questions("presence"):
        name = question.text.removesuffix(" ?").split(" an " if " an " in question.text else " a ")
        there = name[1] in {item.name for item in poster.items}
        assert question.answer == ("yes" if there else "no")
        said[question.answer] += 1
    assert 0.4 < said["yes"] / said.total() < 0.6


def test_relations_hold_between_places():
    said = Counter()
    for poster, question in questions("relation"):
        first, second = (poster.items[index] for index in question.about)
        text = question.text
        assert first.name in text
        assert text.endswith(f"the {second.name} ?")
        holds = {
            "left of": first.column // 2 < second.column // 2,
            "right of": first.column // 2 > second.column // 2,
            "above": first.row // 2 < second.row // 2,
            "below": first.row // 2 > second.row // 2,
        }
        word = next(word for word in holds if f" {word} the {second.name}" in text)
        assert question.answer == ("yes" if holds[word] else "no")
        said[question.answer] += 1
    assert 0.4 < said["yes"] / said.total() < 0.6


def test_charts_are_read_by_color_and_by_height():
    heights = 0
    for poster, question in questions("chart"):
        bars = poster.chart.bars
        if "highest" in question.text or "lowest" in question.text:
            chosen = max if "highest" in question.text else min
            assert question.answer == chosen(bars, key=lambda bar: bar.value).color
        else:
            heights += 1
            color = question.text.split()[-3]
            value = next(bar.value for bar in bars if bar.color == color)
            assert question.answer == NUMBERS[value - 1]
    assert heights > 30


def test_held_out_questions_come_in_turn_and_never_from_training_seeds():
    asked = list(held_out_posters(40))
    assert [question.kind for _, question in asked] == list(POSTER_KINDS) * 4
    assert [question.wording for _, question in asked] == [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10
    seeds = [poster.seed for poster, _ in asked]
    assert len(set(seeds)) == len(seeds)
    assert all(seed in HELD_OUT_SEEDS and seed not in TRAIN_SEEDS for seed in seeds)


def test_icons_have_no_color():
    for seed in SEEDS:
        for item in make_poster(seed).items:
            assert (item.color is None) == (item.kind not in SHAPES)
