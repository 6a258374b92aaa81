"""What the engine makes of a method that keeps fewer than planned, sees all grids, or is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from bare import last_logits
from oracle import TOLERANCE, oracle
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.answers import Checks, indices
from vlmcompress.methods.contracts.method import Reducer, Selector
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.fastvid import FastVID
from vlmcompress.methods.holov import HoloV
from vlmcompress.ops.questions import answered
from vlmcompress.patches.decoder.selection import choose
from vlmcompress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Says(Selector):
    """Says what it is told."""

    name: ClassVar[str] = "says"
    summary: ClassVar[str] = "says"
    what: Callable[[VisualTokens, int], Any]

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        return len(grid) if budget is None else super().keep_count(grid, budget)

    def select(self, tokens: VisualTokens, count: int) -> Any:
        return self.what(tokens, count)


class Few(Says):
    adaptive = True


class All(Says):
    across_parts = True


@dataclass(frozen=True)
class Joins(Reducer):
    """Makes what it is told."""

    name: ClassVar[str] = "joins"
    summary: ClassVar[str] = "joins"
    what: Callable[[VisualTokens, int], Any]

    def reduce(self, tokens: VisualTokens, count: int) -> Any:
        return self.what(tokens, count)


@pytest.fixture(scope="module")
def llava():
    return SUBJECTS["random llava"]()


@pytest.fixture(scope="module")
def tiled():
    return SUBJECTS["random llava-next"]()


def bright(tokens: VisualTokens, count: int) -> torch.Tensor:
    """Those with a positive sum: as many as there are."""
    return (tokens.features.sum(1) > 0).nonzero()[:, 0]


@pytest.mark.parametrize("then", [(), (FastV(),)])
@pytest.mark.parametrize("name", ["random llava", "random llava-next", "random qwen3-vl"])
def test_an_adaptive_method_keeps_as_many_as_it_finds(name, then):
    subject = SUBJECTS[name]()
    inputs = subject.batch(subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9))
    bare = last_logits(subject, inputs)
    with compress(subject.model, [Few(bright), *then]) as c:
        short = last_logits(subject, inputs)
        cached = subject.generate(inputs)
        assert torch.equal(cached, subject.generate(inputs, use_cache=False))
    report = c.report()
    counts = [image.after for image in report.images]
    assert len(set(counts)) > 1
    for image in report.images:
        assert 0 < image.after < image.before
        due = FastV().schedule(subject.layers, image.after, None) if then else {}
        assert {layer: len(left) for layer, left in image.cuts.items()} == due
    assert (short - oracle(report, subject, inputs)).abs().max() < TOLERANCE
    assert (short - bare).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("order", ["raster", "method"])
def test_an_adaptive_method_that_keeps_all_changes_nothing(llava, order):
    inputs = llava.batch(llava.prompt(2, 1))
    bare = last_logits(llava, inputs)

    def every(tokens, count):
        found = torch.arange(count)
        return found.flip(0) if order == "method" else found

    with compress(llava.model, Few(every), order=order) as c:
        assert torch.equal(last_logits(llava, inputs), bare)
    assert not c.report().engaged
    cuts = []
    for methods in ([FastV()], [Few(every), FastV()]):
        with compress(llava.model, methods, order=order) as c:
            last_logits(llava, inputs)
        cuts.append([image.cuts for image in c.report().images])
    assert cuts[0] == cuts[1]


def test_a_method_that_wants_all_grids_gets_them(tiled):
    shown = []

    def look(tokens, count):
        shown.append(tokens)
        return torch.arange(0, 2 * count, 2)

    inputs = tiled.batch(tiled.prompt(1, 1))
    with compress(tiled.model, All(look), budget=20) as c:
        last_logits(tiled, inputs)
    (tokens,) = shown
    assert (tokens.grid, tokens.parts) == (Grid(1, 1, 40), (Grid(1, 4, 4), Grid(1, 6, 4)))
    assert c.report().images[0].kept == list(range(0, 40, 2))
    shown.clear()
    with compress(tiled.model, Says(look), budget=10):
        last_logits(tiled, inputs)
    assert [(t.grid, t.parts, t.part) for t in shown] == [
        (Grid(1, 4, 4), (), 0),
        (Grid(1, 6, 4), (), 1),
    ]


WRONG = {
    "a list": (lambda t, n: list(range(n)), "no 1-D tensor of int64"),
    "floats": (lambda t, n: torch.arange(n).float(), "no 1-D tensor of int64"),
    "a matrix": (lambda t, n: torch.arange(n)[None], "no 1-D tensor of int64"),
    "too few": (lambda t, n: torch.arange(n - 1), "8 tokens where 9 were due"),
    "too many": (lambda t, n: torch.arange(n + 1), "10 tokens where 9 were due"),
    "unsorted": (lambda t, n: torch.arange(n).flip(0), "not ascending, unique"),
    "repeated": (lambda t, n: torch.zeros(n).long(), "not ascending, unique"),
    "too large": (lambda t, n: torch.arange(n) + 28, "from 0 to 35"),
    "negative": (lambda t, n: torch.arange(n) - 1, "from 0 to 35"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_selector_that_is_wrong_is_one_clear_error(llava, wrong):
    what, words = WRONG[wrong]
    with (
        compress(llava.model, Says(what), budget="25%"),
        pytest.raises(VLMCompressError, match=f"says gave .*{words}"),
    ):
        last_logits(llava, llava.batch(llava.prompt(1, 1)))


@pytest.mark.parametrize("count", [0, 37])
def test_an_adaptive_method_cannot_keep_none_or_more_than_there_are(llava, count):
    with (
        compress(llava.model, Few(lambda t, n: torch.arange(count))),
        pytest.raises(VLMCompressError, match=f"{count} tokens where at most 36 were due"),
    ):
        last_logits(llava, llava.batch(llava.prompt(1, 1)))


def test_with_a_budget_an_adaptive_method_keeps_exactly_that(llava):
    with (
        compress(llava.model, Few(lambda t, n: torch.arange(n - 1)), budget=9),
        pytest.raises(VLMCompressError, match="8 tokens where 9 were due"),
    ):
        last_logits(llava, llava.batch(llava.prompt(1, 1)))


def reduction(features=None, members=range(36), sizes=(4,) * 9, places=None):
    def make(tokens, count):
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        rows = tokens.features[:count] if features is None else features
        where = None if places is None else torch.tensor(list(places))
        return Reduction(rows, torch.tensor(list(members)), offsets, where)

    return make


MISMADE = {
    "nothing": (lambda t, n: None, "no Reduction"),
    "too few": (reduction(sizes=(6,) * 6), "6 tokens where 9 were due"),
    "too few features": (reduction(torch.zeros(8, 32)), "features of shape .8, 32. for 9 groups"),
    "narrow features": (reduction(torch.zeros(9, 31)), "features of shape .9, 31. for 9 groups"),
    "an empty group": (reduction(sizes=(0, 8, *(4,) * 7)), "groups that are not each non-empty"),
    "too short": (reduction(members=range(35)), "groups that are not each non-empty"),
    "far too short": (reduction(members=range(30)), "groups that are not each non-empty"),
    "no members": (
        lambda t, n: Reduction(t.features[:n], torch.zeros(0).long(), torch.zeros(n + 1).long()),
        "groups that are not each non-empty",
    ),
    "a stranger": (reduction(members=[*range(35), 36]), "from 0 to 35"),
    "unsorted members": (reduction(members=[1, 0, *range(2, 36)]), "ascending"),
    "unsorted groups": (
        reduction(members=[*range(4, 8), *range(4), *range(8, 36)]),
        "ordered by their smallest member",
    ),
    "unsorted places": (reduction(places=[5, 1, *range(8, 36, 4)]), "or by the places given"),
    "places outside": (reduction(places=range(4, 40, 4)), "from 0 to 35"),
    "too few places": (reduction(places=range(0, 32, 4)), "places that are not int64, one for"),
    "float places": (reduction(places=[0.5] * 9), "places that are not int64"),
    "floats": (reduction(members=[0.5] * 36), "that are not int64"),
}


@pytest.mark.parametrize("wrong", list(MISMADE))
def test_a_reducer_that_is_wrong_is_one_clear_error(llava, wrong):
    what, words = MISMADE[wrong]
    with (
        compress(llava.model, Joins(what), budget="25%"),
        pytest.raises(VLMCompressError, match=f"joins gave .*{words}"),
    ):
        last_logits(llava, llava.batch(llava.prompt(1, 1)))


def test_one_group_must_hold_all_members(llava):
    for sizes in ((35,), (37,)):
        with (
            compress(llava.model, Joins(reduction(sizes=sizes)), budget=1),
            pytest.raises(VLMCompressError, match="joins gave groups that are not each non-empty"),
        ):
            last_logits(llava, llava.batch(llava.prompt(1, 1)))


def test_the_device_is_asked_once_for_all():
    """Tensors on "meta" have no data: whoever asks for some fails."""
    whole = VisualTokens(torch.zeros(36, 4, device="meta"), Grid(1, 6, 6))
    plan = SimpleNamespace(parts=((Grid(1, 3, 6), 5), (Grid(1, 3, 6), 5)))
    checks = Checks()
    for method in (
        Says(lambda t, n: torch.zeros(n, dtype=torch.long, device="meta")),
        Joins(
            lambda t, n: Reduction(
                t.features[:n],
                torch.zeros(18, dtype=torch.long, device="meta"),
                torch.zeros(n + 1, dtype=torch.long, device="meta"),
            )
        ),
    ):
        for picked in (False, True):
            chosen = answered(choose(method, plan, whole, (), False, picked, checks))
            assert chosen.kept.shape == (10,)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        checks.settle()


def test_a_wrong_choice_does_no_harm_before_it_is_refused():
    checks = Checks()
    assert indices("x", torch.tensor([0, 99]), 9, 2, checks).tolist() == [0, 0]
    assert indices("x", torch.tensor([4, 8]), 9, 2, checks).tolist() == [4, 8]
    assert indices("x", torch.tensor([1, 0]), 2, 2, checks, method_order=True).tolist() == [0, 1]


def test_of_two_images_the_second_may_be_the_wrong_one(llava):
    def second(tokens, count):
        return torch.arange(count) + (36 if tokens.index == 1 else 0)

    with (
        compress(llava.model, Says(second), budget="25%"),
        pytest.raises(VLMCompressError, match=r"says gave indices .* from 0 to 35"),
    ):
        last_logits(llava, llava.batch(llava.prompt(2, 1)))


def test_a_reducer_that_is_right_is_believed(llava):
    with compress(llava.model, Joins(reduction()), budget="25%") as c:
        last_logits(llava, llava.batch(llava.prompt(1, 1)))
    assert c.report().images[0].groups == [list(range(n, n + 4)) for n in range(0, 36, 4)]


class FirstOnes(HoloV):
    """Replaces what users call, not the generator behind it."""

    name: ClassVar[str] = "first-ones"

    def select(self, tokens: VisualTokens, count: int) -> torch.Tensor:
        return torch.arange(count)


class FirstGroups(FastVID):
    name: ClassVar[str] = "first-groups"

    def reduce(self, tokens: VisualTokens, count: int) -> Reduction:
        return Reduction.identity(tokens.features[:count])


@pytest.mark.parametrize("method", [FirstOnes(), FirstGroups()], ids=lambda method: method.name)
def test_a_subclass_of_a_method_that_asks_may_replace_what_does_not_ask(method):
    subject = SUBJECTS["tiny-llava"]()
    with compress(subject.model, method, budget=5) as c:
        last_logits(subject, subject.batch(subject.prompt(1, 1)))
    assert c.report().images[0].kept == [0, 1, 2, 3, 4]
