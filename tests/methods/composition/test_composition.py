"""Methods of several stages: how a budget is split, and what does not go together."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch

from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnknownNameError,
    VLMCompressError,
)
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.before_projector import (
    EncoderMethod,
    Merge,
    PixelSelector,
    Resizer,
)
from vlmcompress.methods.contracts.method import Reducer, resolve
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.pool import Pool
from vlmcompress.methods.registry import COMPOSITIONS, METHODS
from vlmcompress.methods.stride import Stride
from vlmcompress.tokens import Grid, Layout

LLAVA = Grid(1, 24, 24)


@dataclass(frozen=True)
class Merging(EncoderMethod):
    name: ClassVar[str] = "merging"
    summary: ClassVar[str] = "merges"

    def keep_count(self, grid, budget):
        return len(grid) // 2 if budget is None else super().keep_count(grid, budget)

    def schedule(self, layers, tokens, keep):
        return {layers - 1: keep}

    def merge(self, view, count):
        raise NotImplementedError

    leader: ClassVar[type] = Merge


@dataclass(frozen=True)
class Shrinking(Resizer, Reducer):
    name: ClassVar[str] = "shrinking"
    summary: ClassVar[str] = "shrinks"
    stages = frozenset({"pixels", "projector"})
    stage: Literal["auto", "pixels", "projector"] = "auto"

    @property
    def acts_at(self):
        return "pixels" if self.stage == "auto" else self.stage

    def settled(self, family, stages):
        if self.stage == "auto" and "pixels" not in stages:
            return replace(self, stage="projector")
        return super().settled(family, stages)

    def shape(self, grid, budget):
        side = int((budget / grid.t) ** 0.5)
        return Grid(grid.t, min(side, grid.h), min(side, grid.w))

    def reduce(self, tokens, count):
        raise NotImplementedError


@dataclass(frozen=True)
class Leaving(PixelSelector):
    name: ClassVar[str] = "leaving"
    summary: ClassVar[str] = "leaves out"

    def select(self, tokens, count, exact):
        return torch.arange(count)


def pipeline(*methods):
    return Pipeline.of(methods)


def test_methods_stand_in_the_order_in_which_an_image_meets_them():
    found = pipeline(FastV(), DivPrune(), Merging())
    assert found.name == "merging+divprune+fastv"
    assert (found.upstream, found.projector, found.decoder) == (Merging(), DivPrune(), FastV())


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((DivPrune(), Stride()), "divprune and stride both act at the projector stage"),
        ((Merging(), Shrinking()), "shrinking acts on pixels and merging in the encoder"),
        ((Leaving(), Shrinking()), "both act at the pixels stage"),
        ((Merging(), Pool()), "pool needs tokens on their grid, and merging leaves none"),
        ((Leaving(), Stride()), "stride needs tokens on their grid, and leaving leaves none"),
        ((Shrinking(stage="projector"), DivPrune()), "both act at the projector stage"),
    ],
)
def test_pairs_that_are_impossible(methods, words):
    with pytest.raises(CompositionError, match=words):
        Pipeline.of(methods)


def test_a_smaller_picture_still_lies_on_a_grid():
    assert pipeline(Shrinking(), Pool()).name == "shrinking+pool"


def test_before_a_projector_method_an_encoder_method_goes_half_the_way():
    both = pipeline(Merging(), DivPrune())
    assert both.upstream_count(LLAVA, 32, 64) == 192 == round((576 * 64) ** 0.5)
    plan = both.plan(LLAVA, 32, 64)
    assert (plan.given, plan.keep, plan.mean) == (192, 64, 64)


def test_alone_it_goes_all_the_way():
    alone = pipeline(Merging())
    plan = alone.plan(LLAVA, 32, 64)
    assert (plan.given, plan.keep, plan.mean) == (64, 64, 64)
    assert alone.plan(LLAVA, 32, None).keep == 288


def test_three_stages_share_a_budget_and_meet_it():
    three = pipeline(Merging(), DivPrune(), FastV())
    plan = three.plan(LLAVA, 32, 64)
    # FastV keeps 306 of 576 tokens on average: ask for 64 / (306 / 576) of the stages before it.
    assert plan.keep == round(64 * 576 / 306) == 120
    assert plan.given == round((576 * 120) ** 0.5) == 263
    assert abs(plan.mean - 64) <= 0.5


@pytest.mark.parametrize("name", ["todre-exit", "corematching"])
def test_behind_another_method_content_may_only_take_more(name):
    plan = parse(f"divprune+{name}").plan(LLAVA, 32, 64)
    assert plan.mean == 64
    (count,) = plan.schedule.values()
    assert count == 64, "asked, though all may stay"


def test_what_was_really_left_is_what_counts():
    both = pipeline(Merging(), FastV())
    plan = both.plan(LLAVA, 32, 64, left=[Grid(1, 1, 100)])
    assert plan.keep == 100
    assert abs(plan.mean - 64) <= 0.5
    assert plan != both.plan(LLAVA, 32, 64)


def test_a_resized_clip_keeps_its_time_and_its_grid():
    plan = pipeline(Shrinking()).plan(Grid(4, 6, 6), 8, 40)
    assert plan.parts == ((Grid(4, 3, 3), 36),)


def test_every_frame_of_a_clip_leaves_the_encoder_with_the_same_number():
    plan = pipeline(Merging()).plan(Grid(4, 6, 6), 8, 40)
    assert plan.parts == ((Grid(4, 1, 10), 40),)


def test_pixels_of_a_clip_are_no_matter_of_single_frames():
    with pytest.raises(BudgetError, match="looks at a clip as a whole"):
        Planner(pipeline(Leaving()), Budget.parse("4 per frame"), 8).plan([Grid(4, 6, 6)])


def test_a_tile_gets_its_share_before_anything_is_encoded():
    planner = Planner(pipeline(Merging()), Budget.parse("25%"), 32)
    assert planner.upstream(Grid(1, 4, 4), None) == 4
    counted = Planner(pipeline(Merging()), Budget.parse(20), 32)
    assert counted.upstream(Grid(1, 4, 4), Layout.of(Grid(1, 4, 4), Grid(1, 8, 8))) == 4
    with pytest.raises(BudgetError, match='give a share such as "25%"'):
        counted.upstream(Grid(1, 4, 4), None)


def test_a_stage_that_a_family_lacks_is_an_error_or_another_stage():
    with pytest.raises(CompositionError, match="merging acts at the encoder stage, which qwen"):
        pipeline(Merging()).for_stages("qwen", ("projector", "decoder"))
    moved = pipeline(Shrinking()).for_stages("llava", ("projector", "decoder"))
    assert moved.projector == Shrinking(stage="projector")
    assert moved.upstream is None
    same = pipeline(Shrinking(), DivPrune())
    assert same.for_stages("qwen", ("pixels", "projector")) == same


def test_a_method_over_all_parts_gets_one_plan_for_them():
    @dataclass(frozen=True)
    class Whole(DivPrune):
        across_parts: ClassVar[bool] = True

    tiles = Layout.of(Grid(1, 4, 4), Grid(1, 4, 8))
    assert pipeline(Whole()).plan(tiles, 8, 12).parts == ((Grid(1, 1, 48), 12),)
    assert pipeline(DivPrune()).plan(tiles, 8, 12).parts == (
        (Grid(1, 4, 4), 4),
        (Grid(1, 4, 8), 8),
    )


def test_papers_of_several_stages_have_one_name():
    for name, spec in COMPOSITIONS.items():
        assert parse(name) == parse(spec)
        assert name not in METHODS.names()
    with pytest.raises(UnknownNameError, match="no_such"):
        parse("aim(no_such=1)")


@pytest.mark.parametrize(
    ("needs", "collected", "missing"),
    [
        ({"a"}, {"a"}, []),
        ({"c|a"}, {"a"}, []),
        ({"a|b"}, {"a"}, []),
        ({"c|"}, set(), []),
        ({"a|", "b"}, {"a", "b"}, []),
        ({"c|d", "a"}, {"a"}, ["c or d"]),
    ],
)
def test_alternative_signals(needs, collected, missing):
    assert resolve(needs, {"a", "b"}) == (collected, missing)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("adaptinfer(table=mine.json)", "as in table='mine.json'"),
        ("adaptinfer(table=a/mine.json)", "as in table='a/mine.json'"),
        ("divprune+fastv(k=three)", "as in k='three'"),
    ],
)
def test_a_text_without_quotes_is_shown_with_them(spec, said):
    with pytest.raises(VLMCompressError, match="a text needs quotes") as caught:
        parse(spec)
    assert str(caught.value).endswith(said)
