"""What stands below an overlay."""

import numpy as np
import pytest
from PIL import Image

from vlmcompress.report.footer import with_footer
from vlmcompress.report.light import dimmed

ABOUT = ["tiny-llava, divprune at 25%", "question: what is it ?", "answer: green"]


@pytest.fixture
def page():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 300, 3), np.uint8)
    return Image.fromarray(pixels)


def text_rows(found, top):
    """Rows below `top` with black letters in them."""
    below = np.asarray(found.convert("L"))[top:]
    return int((below < 60).any(axis=1).sum())


def test_the_page_stays_and_the_texts_stand_below(page):
    found = with_footer(page, ABOUT)
    assert found.width == page.width
    assert np.array_equal(np.asarray(found)[:60], np.asarray(page))
    assert text_rows(found, 60) > 4 * 8
    other = with_footer(page, [*ABOUT[:2], "answer: blue"])
    assert not np.array_equal(np.asarray(found), np.asarray(other))


def test_long_and_hidden_texts_are_wrapped_and_cut(page):
    short = with_footer(page, ["x"])
    for text in ("word " * 500, "x" * 5000, "\x1b[31m\u202e" * 300):
        found = with_footer(page, [text])
        assert short.height < found.height <= short.height + 2 * 21
        assert np.asarray(found)[:, -1].min() == 255 or found.width == page.width


def test_the_legend_shows_the_light_of_a_patch(page):
    """Each swatch is as bright as a patch that reaches as many layers."""
    found = np.asarray(with_footer(page, []))[60:]
    colors = {tuple(color) for color in found.reshape(-1, 3)}
    blue = np.array([[(90, 160, 235)]], float)
    lights = []
    for share in (0.0, 0.5, 1.0):
        light = dimmed(blue, np.array([[[share]]]))[0, 0].astype(int)
        assert tuple(light) in colors
        lights.append(int(light.sum()))
    assert lights == sorted(lights)
    assert len(set(lights)) == 3


def test_a_narrow_page_still_has_its_legend():
    found = with_footer(Image.new("RGB", (40, 40)), ABOUT)
    assert found.width >= 200
