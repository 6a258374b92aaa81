"""What the plug-in of vLLM leaves of a prompt is what `compress` leaves of it."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from both_ways import Prompt
from tiled_models import SIZES, tiled
from vllm_cases import servable

from vlmcompress.errors import VLMCompressError
from vlmcompress.patches.families.registry import FAMILIES as ADAPTERS
from vlmcompress.serving.counts import method_of
from vlmcompress.serving.vllm.families import FAMILIES
from vlmcompress.tokens import Grid

ALONE = [name for name in servable() if "table" not in name and not method_of(name).asks]
"""Methods that look at nothing but features and grid."""
BUDGETS = ("75%", "33%", 9, "4 per frame", 1)
PICTURES = {
    "random llava-next": [(24, 16), (16, 32), (30, 29), (8, 32)],
    "random llava-onevision": [(24, 16), (24, 48), (10, 48)],
}
NAMES = {
    "random llava": 1,
    "random llava-next": 2,
    "random llava-onevision": 1,
    "random llava-onevision with clips": 2,
    "random qwen2-vl": 2,
    "random qwen2-vl with clips": 1,
    "random qwen2.5-vl": 1,
    "random qwen2.5-vl with clips": 1,
    "random qwen3-vl": 1,
    "random qwen3-vl with clips": 2,
    "random internvl": 2,
}
"""Subject -> pictures or clips in a prompt."""
PROMPTS = {
    **{name: partial(Prompt.of, name, count) for name, count in NAMES.items()},
    **{
        f"{name}, several sizes": partial(Prompt.of_sizes, name, sizes)
        for name, sizes in PICTURES.items()
    },
}


@cache
def prompt_of(name):
    return PROMPTS[name]()


def outcome(way, *asked):
    """What comes of it, or what is said of a budget that cannot be met."""
    try:
        return way(*asked)
    except VLMCompressError as error:
        return str(error)


@pytest.mark.rotating(axis="method", by="name", count=2)
@pytest.mark.parametrize("method", [name for name in ALONE if name != "random"])
@pytest.mark.parametrize("name", list(PROMPTS))
def test_the_decoder_is_given_the_same(name, method):
    """But for newlines of rows that keep nothing, where content decides which rows these are."""
    prompt, changed = prompt_of(name), 0
    for budget in BUDGETS:
        right = outcome(prompt.compressed, method, budget)
        found = outcome(prompt.served, method, budget)
        if isinstance(right, str) or isinstance(found, str):
            assert found == right
            continue
        rest = ~found["lone"]
        assert bool(rest.all()) or not method_of(method).goes_by(Grid(1, 2, 2))
        assert torch.equal(found["embeds"][rest], right["embeds"])
        assert torch.equal(found["positions"][:, rest], right["positions"])
        changed += len(found["embeds"]) < len(prompt.whole["embeds"])
    assert changed


@pytest.mark.parametrize("method", ["stride", "pool", "pllava", "m3", "evs"])
@pytest.mark.parametrize("name", [f"{name}, several sizes" for name in PICTURES])
def test_newlines_of_emptied_rows_go_where_the_grid_tells_which(name, method):
    prompt = prompt_of(name)
    for budget in ("50%", 9):
        found, right = prompt.served(method, budget), prompt.compressed(method, budget)
        assert len(found["embeds"]) == len(right["embeds"])
        emptied = [len(one.emptied) for one in prompt.plans(method, budget)]
        assert 0 < sum(emptied) < sum(len(layout.separators) for layout, _ in prompt.layouts())


@pytest.mark.parametrize("method", ["divprune", "tome(stage='projector')"])
@pytest.mark.parametrize("name", [f"{name}, several sizes" for name in PICTURES])
def test_all_newlines_stay_where_the_content_decides(name, method):
    """The prompt has its length before that is known."""
    prompt = prompt_of(name)
    found, right = prompt.served(method, 9), prompt.compressed(method, 9)
    lone = int(found["lone"].sum())
    assert len(found["embeds"]) - len(right["embeds"]) == lone > 0


def test_random_draws_for_each_picture_by_itself():
    """In process a second picture gets places of its own, in vLLM those of the first."""
    one, two = Prompt.of("random qwen2-vl", 1), prompt_of("random qwen2-vl")
    right = one.compressed("random", 9)["embeds"]
    assert torch.equal(one.served("random", 9)["embeds"], right)
    served, compressed = two.served("random", 9), two.compressed("random", 9)
    first, second = (run.tolist() for run in two.runs)
    assert places(two, served, first) == places(two, served, second)
    assert places(two, served, first) == places(two, compressed, first)
    assert places(two, served, second) != places(two, compressed, second)


def places(prompt, found, run):
    """Which tokens of a picture are left."""
    rows = [tuple(row) for row in found["embeds"].tolist()]
    whole = prompt.whole["embeds"][run].tolist()
    return [place for place, row in enumerate(whole) if tuple(row) in rows]


@pytest.mark.parametrize("size", [*SIZES.values(), (1, 100), (100, 1), (1, 2000), (2000, 1)])
@pytest.mark.parametrize("name", ["LlavaNext", "LlavaOnevision"])
def test_a_picture_lies_as_in_process(name, size):
    """Whose layout is read from the features, where the front end of vLLM has the size only."""
    model, sizes = tiled(name), torch.tensor([size])
    with torch.no_grad():
        call = torch.randn(1, 17, 3, 16, 16), sizes
        features = model.model.get_image_features(*call).pooler_output
    (right,) = ADAPTERS.get(model.config.model_type)().layouts(model, "image", features, {})
    family = FAMILIES[type(model).__name__]()
    item, count = {"image_sizes": sizes[0]}, len(features[0])
    assert family.layout(model.config, "image", item, count) == right
    with pytest.raises(VLMCompressError, match="so that its rows are not known"):
        family.layout(model.config, "image", item, count + 1)


def test_no_method_is_left_out():
    assert {"stride", "divprune", "tome(stage='projector')", "evs", "expedit", "pool"} <= {*ALONE}
    models = [prompt_of(name).subject.model for name in NAMES]
    assert set(FAMILIES) == {type(model).__name__ for model in models}
