"""Budgets in FLOPs: the largest share of the tokens that meets them, and what calls do with it."""

import functools
import itertools
import re

import pytest
import torch
from bare import last_logits
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.budget.search import different_shares, largest_share
from vlmcompress.errors import BudgetError, UnsupportedCallError
from vlmcompress.flops.exact import first_token
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods.composition.spec import parse
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.families.registry import family_of
from vlmcompress.tokens import Grid

SPECS = {
    "tiny-llava": ["divprune", "pool", "fastv", "divprune+fastv", "tome", "tome+divprune+fastv"],
    "tiny-qwen": [
        "divprune",
        "divprune+fastv",
        "downsample",
        "pixelprune+divprune",
        "unit-drop+divprune",
    ],
    "random qwen2.5-vl with clips": ["stride", "downsample+divprune", "unit-drop(layer=2)"],
    "random video-llava with clips": ["divprune", "pitome"],
}
PAIRS = [(model, spec) for model, specs in SPECS.items() for spec in specs]


@functools.cache
def subject(name):
    return SUBJECTS[name]()


def inputs_of(one, rows=((1, 5), (2, 7))):
    """A batch of prompts with so many images and words."""
    prompts = [one.prompt(images, seed, text=text) for seed, (images, text) in enumerate(rows, 1)]
    return one.batch(*prompts)


def cost(model, spec, share, layouts, rows, text):
    """Share of the full model's FLOPs at a share of the tokens in percent; None out of reach."""
    family = family_of(model)
    pipeline = parse(spec).for_stages(family.name, family.stages)
    layers = len(family.layers(family.base(model)))
    try:
        plans = Planner(pipeline, Budget(share, "percent"), layers).plan(layouts)
        full, part = (
            load_of(model, list(zip(rows, layouts, some, strict=True)), text, pipeline.upstream)
            for some in ([None] * len(plans), plans)
        )
    except BudgetError:
        return None
    shape = shape_of(model)
    return first_token(shape, part.padded).total / first_token(shape, full.padded).total


def test_every_rounding_of_a_share_is_there_once():
    assert different_shares([4]) == [25, 50, 75, 100]
    both = different_shares([6, 4])
    kept = [[Budget(s, "percent").tokens(Grid(1, 1, n)) for n in (4, 6)] for s in both]
    every = [
        [Budget(s / 100, "percent").tokens(Grid(1, 1, n)) for n in (4, 6)] for s in range(1, 10_001)
    ]
    assert [one for one, _ in itertools.groupby(kept)] == [
        one for one, _ in itertools.groupby(every)
    ]
    assert kept[-1] == [4, 6]
    assert both == sorted(both)


def largest(costs, limit):
    """The largest of the shares 1, 2, ... with such costs; None for one out of reach."""

    def at(share):
        if costs[int(share) - 1] is None:
            raise BudgetError("too small for the method")
        return costs[int(share) - 1]

    shares = [float(n) for n in range(1, len(costs) + 1)]
    return largest_share(at, shares, Budget(limit, "ms"), "mine")


@pytest.mark.parametrize(
    ("costs", "limit", "share"),
    [
        ([1, 2, 3, 4], 3, 3),
        ([1, 2, 3, 4], 2.999, 2),
        ([1, 2, 3, 4], 9, 4),
        ([1, 2, 3, 4], 1, 1),
        ([1, 2, *[2.5] * 20, 3], 2.5, 22),
        ([1, 2, 4, 3, 5, 9, 9, 9, 9], 3, 4),  # rounding: more tokens cost less
        ([None, None, 2, 3, 4], 3, 4),
        ([None, None, 2, 3, 4], 2, 3),
        ([5, 3, 9, 9], 4, 2),
    ],
)
def test_the_largest_share(costs, limit, share):
    assert largest(costs, limit) == (share, costs[share - 1])


@pytest.mark.parametrize("costs", [[3.21049, 4, 5], [None, 3.21049, 5]])
def test_out_of_reach_names_the_smallest(costs):
    with pytest.raises(BudgetError, match=r"budget 3 ms is out of reach: mine costs 3\.211 ms or"):
        largest(costs, 3)
    with pytest.raises(BudgetError, match="too small for the method"):
        largest([None, None], 3)


@functools.cache
def layout_of(name):
    """Of its images, as the engine sees it."""
    one = subject(name)
    with compress(one.model, "stride", budget="50%") as c:
        last_logits(one, inputs_of(one, [(1, 5)]))
        return c._engine.trace.images[0].layout


@functools.cache
def costs_of(name, spec):
    """Share of the tokens in percent -> cost of a batch, for every number of tokens."""
    one, layout = subject(name), layout_of(name)
    text = inputs_of(one)["attention_mask"].sum(1) - torch.tensor([1, 2]) * layout.placeholders
    shares = [100 * n / len(layout) for n in range(1, len(layout) + 1)]
    batch = [layout] * 3, [0, 1, 1], text.tolist()
    return {share: cost(one.model, spec, share, *batch) for share in shares}


@pytest.mark.pairs
@pytest.mark.parametrize("asked", [0.95, 0.75, 0.6])
@pytest.mark.parametrize(("name", "spec"), PAIRS)
def test_a_token_more_would_cost_more_than_was_asked(name, spec, asked):
    one = subject(name)
    inputs, costs = inputs_of(one), costs_of(name, spec)
    fit = [share for share, figure in costs.items() if figure is not None and figure <= asked]
    with compress(one.model, spec, budget=f"{asked} flops") as c:
        if not fit:
            least = next(figure for figure in costs.values() if figure is not None)
            with pytest.raises(BudgetError, match="out of reach") as raised:
                last_logits(one, inputs)
            assert least <= float(str(raised.value).split("costs ")[1].split()[0]) < least + 0.0011
            return
        last_logits(one, inputs)
    report = c.report()
    assert report.resolved == pytest.approx(fit[-1])
    assert report.predicted == pytest.approx(costs[max(fit)], rel=1e-12)
    assert report.asked == report.budget == f"{asked:g} flops"
    assert report.engaged
    # What upstream methods leave of patches decides what the projector method is given.
    upstream = c._engine.planner.pipeline.upstream is not None
    assert report.measured == pytest.approx(report.predicted, rel=0.02 if upstream else 1e-12)
    assert report.measured <= asked or upstream


def test_the_resolved_share_does_what_the_same_percentage_does():
    one = subject("tiny-qwen")
    inputs = inputs_of(one)
    for spec in ("divprune+fastv", "downsample+divprune", "pixelprune"):
        with compress(one.model, spec, budget="0.7 flops") as c:
            found, ids = last_logits(one, inputs), one.generate(inputs)
        kept = [image.kept for image in c.report().images]
        with compress(one.model, spec, budget=Budget(c.report().resolved, "percent")) as again:
            assert torch.equal(last_logits(one, inputs), found)
            assert torch.equal(one.generate(inputs), ids)
        assert [image.kept for image in again.report().images] == kept
        assert (again.report().asked, again.report().resolved) == (None, None)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen", "random llava-next"])
@pytest.mark.parametrize("spec", ["divprune", "fastv", "divprune+fastv"])
def test_keeping_all_changes_not_one_bit_and_remove_undoes(name, spec):
    one = subject(name)
    inputs = inputs_of(one)
    bare, ids, before = last_logits(one, inputs), one.generate(inputs), snapshot(one.model)
    with compress(one.model, spec, budget="1 flops") as c:
        assert torch.equal(last_logits(one, inputs), bare)
        assert torch.equal(one.generate(inputs), ids)
        report = c.report()
    assert (report.predicted, report.measured, report.resolved, report.engaged) == (
        1,
        1,
        100,
        False,
    )
    with compress(one.model, spec, budget="0.95 flops") as c:
        assert not torch.equal(last_logits(one, inputs), bare)
    assert c.report().engaged
    assert torch.equal(last_logits(one, inputs), bare)
    assert snapshot(one.model) == before


@pytest.mark.parametrize("spec", ["divprune", "fastv", "tome+divprune"])
def test_rows_of_text_and_of_two_images_share_one_percentage(spec):
    one = subject("tiny-llava")
    inputs = inputs_of(one, [(1, 5), (0, 9), (2, 30)])
    with compress(one.model, spec, budget="0.8 flops") as c:
        last_logits(one, inputs)
        generated = one.generate(inputs)
        report = c.report()
        assert torch.equal(generated, one.generate(inputs))
    assert [image.row for image in report.images] == [0, 2, 2]
    assert len({image.mean for image in report.images}) == 1
    assert report.measured == pytest.approx(report.predicted, rel=1e-3)
    assert 0.75 < report.measured <= 0.8
    # Padding is computed, too: alone, the same images may keep more or less.
    with compress(one.model, spec, budget="0.8 flops") as c:
        last_logits(one, inputs_of(one, [(1, 5)]))
    assert c.report().resolved != report.resolved


def test_what_content_left_is_measured_not_what_was_planned():
    one = subject("tiny-llava")
    inputs = inputs_of(one)
    with compress(one.model, "divprune+corematching", budget="0.9 flops") as c:
        last_logits(one, inputs)
    report = c.report()
    layers = list(zip(*(image.per_layer for image in report.images), strict=True))
    assert layers[0] != layers[-1]
    plans = [image.plan for image in c._engine.trace.images]
    assert [plan.per_layer for plan in plans] != [image.per_layer for image in report.images]
    assert report.measured < report.predicted - 1e-3


def test_beams_share_what_was_encoded():
    one = subject("random llava")
    inputs = inputs_of(one)
    seen = {}
    for beams in (1, 3):
        with compress(one.model, "divprune", budget="0.8 flops") as c:
            one.generate(inputs, num_beams=beams)
        seen[beams] = c.report()
    model, layers = one.model, one.layers
    text = [8 + 5, 10 + 7]
    layout = layout_of("random llava")
    images = [(row, layout, None) for row in (0, 1, 1)]
    load = load_of(model, images, text)
    full = first_token(shape_of(model), load)
    encoder = (full.encoder + full.projector) / full.total
    assert 0 < encoder < 1
    assert seen[3].resolved > seen[1].resolved  # the decoder's part is larger, the encoder's less
    assert len(seen[3].images) == 3
    assert layers == len(full.prefill)


def test_a_longer_question_leaves_fewer_tokens():
    one = subject("tiny-llava")
    shares = []
    with compress(one.model, "divprune", budget="0.7 flops") as c:
        for words in (5, 60):
            last_logits(one, inputs_of(one, [(1, words)]))
            shares.append(c.report().resolved)
    assert shares[0] > shares[1]


@pytest.mark.parametrize("spec", ["tome", "tome+divprune"])
def test_an_encoder_that_does_not_know_the_image_refuses(spec):
    one = subject("random llava-next")
    with (
        compress(one.model, spec, budget="0.8 flops"),
        pytest.raises(BudgetError, match="does not know the size of the image: give a share"),
    ):
        last_logits(one, inputs_of(one))


def test_features_by_themselves_have_no_prompt():
    one = subject("tiny-qwen")
    inputs = inputs_of(one)
    pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with (
        compress(one.model, "downsample", budget="0.8 flops"),
        pytest.raises(UnsupportedCallError, match=r"budget 0\.8 flops takes downsample to know"),
    ):
        one.model.model.get_image_features(**pixels)


@pytest.mark.parametrize("spec", ["full", "text-only"])
def test_methods_without_a_budget_refuse_a_cost(spec):
    one = subject("tiny-llava")
    with pytest.raises(BudgetError, match="takes no budget"):
        compress(one.model, spec, budget="0.5 flops")


def test_a_report_of_a_cost_is_printed_and_in_json():
    one = subject("tiny-llava")
    with compress(one.model, "divprune", budget="0.7 flops") as c:
        assert c.report().to_dict()["asked"] == "0.7 flops"
        assert c.report().predicted is None
        last_logits(one, inputs_of(one))
    report = c.report()
    assert report.to_dict()["measured"] == report.measured <= 0.7
    line = "asked 0.7 flops, predicted 0.69[0-9], measured 0.69[0-9], at [0-9.]+% of the tokens"
    assert re.search(line, str(report))
    with compress(one.model, "divprune", budget=36) as c:
        last_logits(one, inputs_of(one))
    assert "asked" not in str(c.report())
    assert c.report().to_dict()["asked"] is None
