"""DART: pivots, and what is least like them."""

import math

import pytest
import torch
from shown import Layer

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.dart import DART
from vlmcompress.tokens import Grid


class Turning(Layer):
    """Visual tokens and text at given angles of a plane, with given sizes of their keys."""

    def turn(self, angles, text, sizes, text_sizes):
        for rows, degrees in ((self.visual, angles), (self.text, text)):
            radians = torch.tensor(degrees, dtype=torch.float).deg2rad()
            self.hidden[rows] = 0
            self.hidden[rows, :2] = torch.stack([radians.cos(), radians.sin()], 1) * 3
        self.sizes = torch.zeros(len(self.hidden))
        self.sizes[self.visual] = torch.tensor(sizes, dtype=torch.float)
        self.sizes[self.text] = torch.tensor(text_sizes, dtype=torch.float)
        return self

    def keys(self, *, rope=True, of="this"):
        assert (rope, of) == (True, "previous")
        signs = torch.tensor([1.0, -1.0])
        return self.sizes[:, None] * signs.expand(3, 1, 2)


def plane():
    # By hand: the pivot at 0 degrees takes 170 and 120 degrees, the text pivot at 100 then takes
    # 10 (90 away; 60 is 40 away).
    return Turning(Grid(1, 1, 5), words=2).turn(
        [10, 0, 170, 60, 120], text=[0, 100], sizes=[1, 9, 2, 3, 4], text_sizes=[5, 6]
    )


def test_a_hand_example():
    method = DART(image_pivots=1, text_pivots=1)
    assert method.keep(plane(), 1).tolist() == [1]
    assert method.keep(plane(), 2).tolist() == [1, 2]
    assert method.keep(plane(), 3).tolist() == [0, 1, 2]
    assert method.keep(plane(), 4).tolist() == [0, 1, 2, 4]
    assert DART(image_pivots=1, text_pivots=0).keep(plane(), 3).tolist() == [1, 2, 4]
    scores = method.score(plane())
    assert scores[1] == math.inf
    cosines = [math.cos(math.radians(a)) for a in (10, 70, 40, 20)]
    torch.testing.assert_close(scores[[0, 2, 3, 4]], -torch.tensor(cosines))


def brute(view, count, image_pivots, text_pivots):
    keys, hidden = view.keys(of="previous"), view.hidden

    def size(column):
        return sum(float(value.abs()) for value in keys[:, column].flatten())

    def largest(columns, number):
        ranked = sorted(columns, key=lambda column: (-size(column), column))
        return sorted(ranked[:number])

    def cosine(a, b):
        a, b = hidden[a].double(), hidden[b].double()
        return float(a @ b / (a.norm() * b.norm()))

    visual = view.visual.tolist()
    image = largest(visual, min(count, image_pivots))
    pivots = image + largest(view.text.tolist(), text_pivots)
    kept, rest = list(image), count - len(image)
    for number, pivot in enumerate(pivots):
        quota = rest // len(pivots) + (number < rest % len(pivots))
        left = [column for column in visual if column not in kept]
        kept += sorted(left, key=lambda column: (cosine(column, pivot), column))[:quota]
    return sorted(visual.index(column) for column in kept)


@pytest.mark.parametrize("pivots", [(4, 4), (1, 0), (3, 2), (20, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(pivots, seed):
    for words in (1, 5):
        view = Layer(Grid(1, 2, 5), seed=seed, words=words)
        for count in range(10):
            kept = DART(image_pivots=pivots[0], text_pivots=pivots[1]).keep(view, count).tolist()
            assert kept == brute(view, count, *pivots)


def test_duplicates_of_a_pivot_go_first():
    view = plane()
    view.hidden[view.visual[3]] = view.hidden[view.visual[1]] * 2
    assert 3 not in DART(image_pivots=1, text_pivots=0).keep(view, 4).tolist()


def test_default_counts():
    assert DART().schedule(32, 576, None) == {2: 128}
    assert DART().schedule(32, 576, 64) == {2: 30}
    assert DART(ratio=0.0).schedule(32, 576, None) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"image_pivots": 0}, "image_pivots must be 1 or more, got 0"),
        ({"text_pivots": -1}, "text_pivots must be 0 or more, got -1"),
        ({"ratio": 1.0}, "ratio must be at least 0 and below 1, got 1.0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(VLMCompressError, match=message):
        DART(**options)


def test_autocast_changes_no_pick():
    view = Layer(Grid(1, 20, 20))
    expected, scores = DART().keep(view, 90), DART().score(view)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DART().keep(view, 90), expected)
        assert torch.equal(DART().score(view), scores)
    # The angles of the others to the pivot differ by less than bfloat16 can tell.
    near = Turning(Grid(1, 1, 4), words=1).turn(
        [0, 10, 10.1, 10.2], text=[0], sizes=[9, 1, 2, 3], text_sizes=[1]
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert DART(image_pivots=1, text_pivots=0).keep(near, 2).tolist() == [0, 3]
