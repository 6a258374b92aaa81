"""How the placeholders of an image lie, against the model's own packing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from subject_models import SUBJECTS
from tiled_models import SIZES, TILED, tiled

from vlmcompress.api import compress
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.fastv import FastV
from vlmcompress.patches.families.idefics3 import until_overview
from vlmcompress.patches.families.registry import FAMILIES
from vlmcompress.patches.sequence.separators import Separators
from vlmcompress.tokens import Grid, Layout, Reduction, Separator


@pytest.mark.parametrize("size", list(SIZES.values()), ids=list(SIZES))
@pytest.mark.parametrize("name", list(TILED))
def test_rows_and_newlines_lie_as_the_model_packs_them(name, size):
    model = tiled(name)
    base, tiles = model.model, 17
    sizes = torch.tensor([size])
    with torch.no_grad():
        features = base.get_image_features(torch.randn(1, tiles, 3, 16, 16), sizes).pooler_output
    (layout,) = FAMILIES.get(model.config.model_type)().layouts(model, "image", features, {})
    # The model's own packing of a tile number, of rows, and of NaN for newlines.
    count = _tiles(model, size)
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1).expand(count, 16, 1)
    strategy = () if name == "LlavaOnevision" else ("default",)
    packed = base.pack_image_features(
        [rows], sizes, *strategy, image_newline=torch.tensor([torch.nan])
    )
    packed = packed[0][0][:, 0]
    assert [s.place for s in layout.separators] == packed.isnan().nonzero()[:, 0].tolist()
    assert layout.placeholders == len(packed) == len(features[0])
    assert layout.parts[0] == Grid(1, 4, 4)
    visual = packed[~packed.isnan()]
    for separator in layout.separators[1:]:
        row = visual[separator.start : separator.stop]
        assert len(row) == layout.parts[1].w
        assert row.diff().abs().max() < 1e-5 or "Onevision" in name
    covered = [i for s in layout.separators for i in range(s.start, s.stop)]
    assert covered == list(range(0 if len(layout.parts) == 1 else 16, len(layout)))


def _tiles(model: Any, size: tuple[int, int]) -> int:
    import sys

    module: Any = sys.modules[type(model).__module__]
    return int(module.image_size_to_num_patches(list(size), model.config.image_grid_pinpoints, 16))


def test_an_image_without_tiles_ends_with_one_newline_that_stays_with_any_token():
    model = tiled("LlavaOnevision")
    with torch.no_grad():
        features = model.model.get_image_features(
            torch.randn(2, 1, 3, 16, 16),
            torch.tensor([[16, 16], [16, 16]]),
            batch_num_images=torch.tensor([2]),
        ).pooler_output
    layouts = FAMILIES.get("llava_onevision")().layouts(model, "image", features, {})
    assert layouts == [Layout((Grid(1, 4, 4),), (Separator(16, 0, 16),))] * 2


def test_separators_stay_with_any_token_of_their_row():
    rows = Separators(torch.tensor([3, 7, 11]), torch.tensor([[0, 3], [3, 6], [6, 9]]))
    assert rows.bound_to(torch.tensor([2, 6])).tolist() == [True, False, True]
    assert rows.bound_to(torch.tensor([5, 3])).tolist() == [False, True, False]
    assert rows.bound_to(torch.tensor([], dtype=torch.long)).tolist() == [False] * 3
    moved = rows.only(torch.tensor([True, False, True])).move(torch.arange(12) * 10)
    assert moved.at.tolist() == [30, 110]
    assert moved.rows.tolist() == [[0, 3], [6, 9]]


def test_layouts_one_after_the_other_are_counted_on():
    one = Layout((Grid(1, 1, 2),), (Separator(2, 0, 2),))
    both = one + one
    assert both.parts == (Grid(1, 1, 2),) * 2
    assert both.separators == (Separator(2, 0, 2), Separator(5, 2, 4))
    assert (len(both), both.placeholders, both.grid) == (4, 6, Grid(1, 1, 4))
    assert str(both) == "1x2+1x2"


@pytest.mark.parametrize("budget", range(1, 41))
def test_grids_of_one_image_share_its_budget_by_their_size(budget):
    layout = Layout.of(Grid(1, 4, 4), Grid(1, 6, 4))
    (plan,) = Planner(parse("divprune"), Budget.parse(budget), 4).plan([layout])
    kept = [count for _, count in plan.parts]
    assert plan.keep == sum(kept) == budget
    assert abs(kept[0] - budget * 16 / 40) <= 0.5


def test_reductions_of_the_parts_of_an_image_join():
    first = Reduction.from_groups(torch.ones(1, 2), [torch.tensor([0, 1])])
    second = Reduction.identity(torch.zeros(2, 2))
    joined = Reduction.join([first, second], [0, 2])
    assert joined.groups() == [[0, 1], [2], [3]]
    assert joined.anchors.tolist() == [0, 2, 3]
    assert joined.features.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_tiles_belong_to_the_image_whose_overview_follows_them():
    marker, overview, text, image = 7, 8, 1, 9
    ids = [text, marker, image, image, marker, image, image, overview, image, image, text]
    ids += [overview, image, image, text]
    pieces = [[2, 3], [5, 6], [8, 9], [12, 13]]
    assert until_overview(ids, pieces) == [False, True, True, False]
    assert until_overview([], []) == []


def test_tiles_without_anything_between_them_are_one_image():
    family = FAMILIES.get("internvl")()
    assert family.continues([], [[2, 3], [4, 5], [7, 8]]) == [False, True, False]


def test_a_budget_is_shared_by_the_tiles_of_each_image():
    subject = SUBJECTS["random internvl"]()
    inputs = subject.batch(subject.prompt(2, 1))
    with compress(subject.model, "divprune", budget=9) as c, torch.no_grad():
        subject.model(**inputs)
    images = c.report().images
    assert [image.after for image in images] == [9, 9]
    assert [image.parts for image in images] == [[(1, 3, 3)] * 3] * 2
    for image in images:
        assert [sum(9 * t <= k < 9 * t + 9 for k in image.kept) for t in range(3)] == [3, 3, 3]


def test_random_picks_differ_between_equal_tiles():
    subject = SUBJECTS["random internvl"]()
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, "random", budget=12) as c, torch.no_grad():
        subject.model(**inputs)
    (image,) = c.report().images
    tiles = {tuple(k - 9 * t for k in image.kept if 9 * t <= k < 9 * t + 9) for t in range(3)}
    assert len(tiles) > 1


@pytest.mark.parametrize("name", ["random llava-onevision with clips", "random llava-next"])
def test_text_rows_begin_after_the_last_separator(name):
    seen = []

    @dataclass(frozen=True)
    class Reader(FastV):
        def score(self, view: Any) -> torch.Tensor:
            seen.append((len(view.text), view.attention("text").shape[1], view.parts))
            return super().score(view)

    subject = SUBJECTS[name]()
    inputs = subject.batch(subject.prompt(2, 1, text=5))
    with compress(subject.model, Reader(), budget="60%") as c, torch.no_grad():
        subject.model(**inputs)
    parts = tuple(Grid(*part) for part in c.report().images[0].parts)
    assert seen == [(7, 7, parts)] * 2  # two words after every image, then the text


def test_clips_of_a_family_without_them_are_refused():
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(1, 1))
    clip = {"pixel_values_videos": inputs["pixel_values"]}
    with (
        compress(subject.model, "divprune", budget=9),
        pytest.raises(UnsupportedCallError, match="llava models are supported with image only"),
    ):
        subject.model(**inputs, **clip)
