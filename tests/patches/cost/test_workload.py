"""The FLOPs of every family, against torch's counter on bare and compressed models.

The counter sees matrices, convolutions and products of attention. Attention is eager, so that it
sees all of it: every query meets every key, `causal=False`.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from figures import VICUNA
from kv_cache import cache_in, cached
from subject_models import SUBJECTS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vlmcompress.api import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.exact import decode_step, first_token
from vlmcompress.flops.paper_conventions import kv_bytes, prefill_flops
from vlmcompress.methods import get_method
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.families.vision_encoders_packed import WindowEncoder
from vlmcompress.tokens import Grid, Layout, Separator

_built = {}


def subject_of(name):
    if name not in _built:
        _built[name] = SUBJECTS[name]()
    model = _built[name].model
    model.set_attn_implementation("eager")
    if "moe" in name:
        model.set_experts_implementation("eager")
    return _built[name]


@pytest.fixture(params=list(SUBJECTS))
def subject(request):
    return subject_of(request.param)


@dataclass(frozen=True)
class Thirds(DecoderMethod):
    """Drops the first third of the tokens, and later half of them, without a product."""

    name = "thirds"
    summary = "drops"

    def schedule(self, layers, tokens, budget):
        return {1: tokens - tokens // 3, 4: tokens // 3}

    def score(self, view):
        return torch.arange(len(view.visual), dtype=torch.float32)


def counted(model, inputs):
    """FLOPs of a prefill by part, as the modules of the model were called."""
    family = family_of(model)
    base = family.base(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(**inputs, logits_to_keep=1)
    found = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}

    def of(modules):
        return sum(found.get(names[module], 0) for module in modules)

    seen = family.towers(base)
    # Children of layers, since what hooks on a layer compute counts as the layer's.
    inside = [
        part for tower in seen for layer, _ in attention_layers(tower) for part in layer.children()
    ]
    around = [
        part
        for tower in seen
        for part in tower.modules()
        if isinstance(part, nn.Conv2d | nn.Conv3d)
    ]
    around += [tower.head for tower in seen if hasattr(tower, "head")]
    ends = ("multi_modal_projector", "connector", "visual.merger", "deepstack_merger_list")
    return SimpleNamespace(
        encoder=of(inside) + of(around),
        projector=of(
            part
            for part in base.modules()
            if names[part].endswith(ends[:3]) or names[part].rpartition(".")[0].endswith(ends[3])
        ),
        prefill=[of(layer.children()) for layer in family.layers(base)],
        lm_head=of([model.lm_head]),
        total=found["Global"],
        cache=cache_in(output),
    )


def texts(subject, inputs):
    """Per row, tokens that are no placeholders."""
    words = inputs["attention_mask"].bool() & (inputs["input_ids"] != subject.image_token)
    return words.sum(1).tolist()


def looked_at(subject, inputs, methods="full", budget=None):
    """Images of a compressed call with the plans that were made, and its reports."""
    with compress(subject.model, methods, budget=budget) as c, torch.no_grad():
        subject.model(**inputs)
        planned = [(image.row, image.layout, image.plan) for image in c._engine.trace.images]
        return planned, c.report()


def agree(costs, count, total=True):
    """Every part, and that nothing beside them was computed."""
    assert costs.encoder == count.encoder
    assert costs.projector == count.projector
    assert list(costs.prefill) == count.prefill
    assert costs.lm_head == count.lm_head
    assert not total or costs.total == count.total


def test_a_bare_call(subject):
    one = family_of(subject.model).name == "mistral3"
    inputs = subject.batch(subject.prompt(1 if one else 2, 1))
    count = counted(subject.model, inputs)
    planned, report = looked_at(subject, inputs)
    shape, text = shape_of(subject.model), texts(subject, inputs)
    bare = [(row, layout, None) for row, layout, _ in planned]
    load = load_of(subject.model, bare, text)
    agree(first_token(shape, load, causal=False), count)
    assert load == load_of(subject.model, planned, text)
    assert load == load_of(subject.model, report.images, text)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in count.cache.layers)
    assert first_token(shape, load).kv_bytes == held
    assert first_token(shape, load).total < count.total


def test_pixtral_compares_the_patches_of_all_images_of_a_call():
    """Its mask keeps them apart, so that only what computes all pairs sees more than the load."""
    subject = subject_of("random mistral3")
    inputs = subject.batch(subject.prompt(2, 1))
    count = counted(subject.model, inputs)
    load = load_of(subject.model, looked_at(subject, inputs)[0], texts(subject, inputs))
    costs = first_token(shape_of(subject.model), load, causal=False)
    assert count.encoder - costs.encoder == 3 * 4 * 32 * (96**2 - 2 * 48**2)


@pytest.mark.rotating(axis="methods", by="subject", count=1)
@pytest.mark.parametrize(
    "methods",
    [("random",), (Thirds(),), ("random", Thirds())],
    ids=["projector", "decoder", "both"],
)
def test_a_padded_batch_with_methods_that_multiply_nothing(subject, methods):
    if family_of(subject.model).name == "mistral3":
        prompts = [subject.prompt(1, 1, text=4), subject.prompt(0, 2, text=9)]
    else:
        prompts = [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]
    inputs = subject.batch(*prompts)
    methods = [get_method(m) if isinstance(m, str) else m for m in methods]
    budget = None if len(methods) == 1 and isinstance(methods[0], Thirds) else "40%"
    planned, report = looked_at(subject, inputs, methods, budget)
    assert report.engaged
    shape, text = shape_of(subject.model), texts(subject, inputs)
    with compress(subject.model, methods, budget=budget):
        count = counted(subject.model, inputs)
    load = load_of(subject.model, report.images, text)
    agree(first_token(shape, load.padded, causal=False), count)
    assert load.rows[0] != load.rows[1]
    bare = load_of(subject.model, [(row, layout, None) for row, layout, _ in planned], text)
    assert first_token(shape, load).total < first_token(shape, bare).total
    # A plan cannot know of separators whose rows are gone; it is never below.
    plans = load_of(subject.model, planned, text)
    assert replace(plans, rows=load.rows) == load
    both = zip(sum(plans.rows, ()), sum(load.rows, ()), strict=True)
    assert all(plan == run if not subject.separators else plan >= run for plan, run in both)


def test_scores_are_no_part_of_the_layers():
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(2, 1))
    shape, text = shape_of(subject.model), texts(subject, inputs)
    _, report = looked_at(subject, inputs, "divprune+fastv", "40%")
    with compress(subject.model, "divprune+fastv", budget="40%"):
        count = counted(subject.model, inputs)
    load = load_of(subject.model, report.images, text)
    costs = first_token(shape, load, causal=False)
    agree(costs, count, total=False)
    selection = count.total - costs.total
    assert 0 < selection < costs.total / 10
    assert first_token(shape, replace(load, selection=selection), causal=False).total == count.total


@dataclass
class Upstream:
    """A call of a model with a method before the decoder."""

    count: Any
    """What torch's counter saw."""
    shape: Any
    report: Any
    load: Any
    """By the report."""
    planned: Any
    """By the plans."""
    whole: Any
    """Of the same call without the method."""
    windows: bool
    """Whether the tower attends in windows."""


def upstream(name, spec):
    """Two prompts of two images and one, with 40 % kept."""
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1))
    planned, report = looked_at(subject, inputs, spec, "40%")
    with compress(subject.model, spec, budget="40%"):
        count = counted(subject.model, inputs)
    family, text = family_of(subject.model), texts(subject, inputs)
    method = get_method(spec).settled("", family.stages)
    return Upstream(
        count,
        shape_of(subject.model),
        report,
        load_of(subject.model, report.images, text, method),
        load_of(subject.model, planned, text, method),
        load_of(subject.model, report.images, text),
        isinstance(family.encoder, WindowEncoder),
    )


MERGED = ["random llava", "tiny-llava", "random llava-next", "random llava-onevision"]
MERGED += ["random video-llava", "random video-llava with clips", "random vipllava"]
MERGED += ["random internvl", "random idefics3", "random smolvlm", "random gemma3"]


@pytest.mark.parametrize("name", MERGED)
def test_merging_in_the_tower(name):
    found = upstream(name, "tome")
    count, load = found.count, found.load
    costs = first_token(found.shape, load, causal=False)
    if name == "random llava-next":  # 8x4 patches of which 6x4 are picture, merged unevenly
        assert costs.encoder == pytest.approx(count.encoder, rel=0.05)
        costs = replace(costs, encoder=count.encoder)
    agree(costs, count, total=False)
    assert load.encoder == found.planned.encoder
    assert costs.encoder < first_token(found.shape, found.whole).encoder


PACKED = ["random qwen2-vl", "random qwen2-vl with clips", "random qwen2.5-vl"]
PACKED += ["random qwen2.5-vl with clips", "tiny-qwen", "tiny-qwen with clips"]
PACKED += ["random qwen3-vl", "random qwen3-vl-moe with clips"]


@pytest.mark.parametrize("name", PACKED)
def test_merging_in_the_tower_of_one_sequence(name):
    found = upstream(name, "tome")
    count, load = found.count, found.load
    assert load == found.planned
    assert load.encoder[0] == tuple(sorted(set(load.encoder[0]), reverse=True))
    costs = first_token(found.shape, load, causal=False)
    whole = first_token(found.shape, found.whole, causal=False)
    assert count.projector <= whole.projector
    assert costs.projector == pytest.approx(count.projector, rel=1e-12)
    assert costs.encoder <= count.encoder < whole.encoder
    if found.windows:
        assert costs.encoder == pytest.approx(count.encoder, rel=0.1)
        costs = replace(costs, encoder=count.encoder)
    agree(replace(costs, projector=count.projector), count, total=False)


@pytest.mark.parametrize("name", PACKED)
def test_smaller_pictures(name):
    found = upstream(name, "downsample")
    count, load = found.count, found.load
    agree(first_token(found.shape, load, causal=False), count)
    assert load == found.planned
    assert 0 < sum(len(image.kept) for image in found.report.images) < load.patches


@pytest.mark.parametrize("name", PACKED)
def test_pictures_with_patches_left_out(name):
    found = upstream(name, "pixelprune")
    count, load = found.count, found.load
    costs = first_token(found.shape, load, causal=False)
    assert load == found.planned
    assert load.patches == found.whole.patches
    if "clips" in name or found.windows:
        # Equal shares compare the fewest pairs, so frames and windows really compare more.
        assert costs.encoder <= count.encoder < first_token(found.shape, found.whole).encoder
        assert costs.encoder == pytest.approx(count.encoder, rel=0.1)
        costs = replace(costs, encoder=count.encoder)
    agree(costs, count, total=False)


@pytest.mark.rotating(axis="name", by="layer", count=2)
@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("name", PACKED)
def test_tokens_dropped_inside_the_tower(name, layer):
    found = upstream(name, f"unit-drop(layer={layer})")
    count, load = found.count, found.load
    assert load == found.planned
    assert len(set(load.encoder[0][:layer]) | {load.encoder[0][layer]}) == 1 + bool(layer)
    costs = first_token(found.shape, load, causal=False)
    whole = first_token(found.shape, found.whole, causal=False)
    assert count.projector <= whole.projector
    assert costs.projector == pytest.approx(count.projector, rel=1e-12)
    assert costs.encoder <= count.encoder < whole.encoder
    if "clips" in name or found.windows:
        assert costs.encoder == pytest.approx(count.encoder, rel=0.1)
        costs = replace(costs, encoder=count.encoder)
    agree(replace(costs, projector=count.projector), count, total=False)


@pytest.mark.parametrize("name", ["random qwen3-vl", "random internvl"])
def test_a_tower_that_goes_on_with_everything_costs_as_much(name):
    found = upstream(name, "unit-drop(layer=1, whole_tower=True)")
    count, load = found.count, found.load
    agree(first_token(found.shape, load, causal=False), count, total=False)
    assert load == found.planned


DROPPED = ["random internvl", "random idefics3", "random smolvlm", "random gemma3"]
DROPPED += ["tiny-llava", "random llava-onevision", "random vipllava"]


@pytest.mark.rotating(axis="name", by="layer", count=2)
@pytest.mark.parametrize("layer", range(2))
@pytest.mark.parametrize("name", DROPPED)
def test_tokens_of_tiles_dropped_inside_the_tower(name, layer):
    found = upstream(name, f"unit-drop(layer={layer})")
    count, load = found.count, found.load
    costs = first_token(found.shape, load, causal=False)
    agree(costs, count, total=False)
    assert load.encoder == found.planned.encoder
    assert costs.encoder < first_token(found.shape, found.whole).encoder


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("random llava", "tome"),
        ("random qwen2-vl", "pixelprune"),
        ("random qwen2.5-vl with clips", "downsample"),
    ],
)
def test_two_methods_before_the_decoder(name, upstream):
    subject = subject_of(name)
    inputs, methods = subject.batch(subject.prompt(2, 1)), f"{upstream}+random"
    planned, report = looked_at(subject, inputs, methods, "20%")
    with compress(subject.model, methods, budget="20%"):
        count = counted(subject.model, inputs)
    shape, text = shape_of(subject.model), texts(subject, inputs)
    method = get_method(upstream).settled("", family_of(subject.model).stages)
    load = load_of(subject.model, report.images, text, method)
    agree(first_token(shape, load, causal=False), count, total=False)
    assert load == load_of(subject.model, planned, text, method)
    assert all(image.before > image.given > image.after for image in report.images)


@pytest.mark.parametrize("grid", [(1, 10, 14), (2, 6, 10)], ids=str)
def test_windows_that_the_border_cuts(grid):
    model = subject_of("random qwen2.5-vl").model
    patches = grid[0] * grid[1] * grid[2]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.get_image_features(torch.randn(patches, 96), torch.tensor([grid]))
    image = (0, Grid(grid[0], grid[1] // 2, grid[2] // 2), None)
    costs = first_token(shape_of(model), load_of(model, [image], [0]))
    assert costs.encoder + costs.projector == counter.get_total_flops()


@pytest.mark.parametrize("methods", [["full"], ["random", Thirds()]], ids=["bare", "cut"])
def test_a_further_token(subject, methods):
    methods = [get_method(m) if isinstance(m, str) else m for m in methods]
    inputs = subject.batch(subject.prompt(1, 1))
    text = texts(subject, inputs)
    with compress(subject.model, methods, budget=None if len(methods) == 1 else "40%") as c:
        with torch.no_grad():
            cache = cache_in(subject.model(**inputs))
        report = c.report()
        more = torch.tensor([[subject.vocabulary[0]]])
        count = counted(subject.model, {"input_ids": more, **cached(subject.model, cache)})
    rows = load_of(subject.model, report.images, text).rows
    shape = shape_of(subject.model)
    assert decode_step(shape, rows) == count.total
    assert decode_step(shape, [[n + 20 for n in rows[0]]]) > count.total
    assert decode_step(shape, [*rows, *rows]) == 2 * count.total


def test_what_a_compressed_cache_holds(subject):
    inputs = subject.batch(subject.prompt(1, 1))
    text, methods = texts(subject, inputs), [get_method("random"), Thirds()]
    _, report = looked_at(subject, inputs, methods, "40%")
    with compress(subject.model, methods, budget="40%"), torch.no_grad():
        cache = cache_in(subject.model(**inputs))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    costs = first_token(shape_of(subject.model), load_of(subject.model, report.images, text))
    assert costs.kv_bytes == held


@pytest.mark.parametrize("name", ["random llava-next", "random llava-onevision"])
def test_the_fewest_tiles_that_a_layout_fits_in(name, monkeypatch):
    """Mostly those that were encoded; thin rows at the edge of a tile leave no trace."""
    subject = subject_of(name)
    model, family = subject.model, family_of(subject.model)
    side = 24
    monkeypatch.setattr(model.config.vision_config, "image_size", side * 4)
    shapes = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
    pinpoints = [[a * side * 4, b * side * 4] for a, b in shapes]
    monkeypatch.setattr(model.config, "image_grid_pinpoints", pinpoints)
    found = []
    for height in range(60, 400, 37):
        for width in range(70, 400, 23):
            size = torch.tensor([[height, width]])
            tiles = image_size_to_num_patches(size[0], pinpoints, side * 4)
            layout = packed(family, model, tiles, side, {"image_sizes": size})
            load = load_of(model, [(0, layout, None)], [0])
            assert load.projected == len(load.encoder) * side**2
            found.append((len(load.encoder), tiles))
            assert load_of(model, [(0, layout, None)], [0], tiles=[tiles]).projected == (
                tiles * side**2
            )
    assert all(fewest <= tiles for fewest, tiles in found)
    assert sum(fewest == tiles for fewest, tiles in found) > 0.9 * len(found)


def packed(family, model, tiles, side, call):
    """The layout that the model makes of so many tiles."""
    features = torch.randn(tiles, side**2, 32)
    more = {"vision_feature_select_strategy": "default"}
    if family.name == "llava_onevision":
        more = {"vision_aspect_ratio": "anyres_max_9"}
    newline = model.model.image_newline
    (made,) = model.model.pack_image_features(
        [features], call["image_sizes"], image_newline=newline, **more
    )[0]
    (layout,) = family.layouts(model, "image", [made], call)
    return layout


def test_tiles_may_be_given_where_images_were_shrunk():
    model = subject_of("random llava-onevision").model
    image = (0, Layout.of(Grid(1, 6, 6), Grid(1, 18, 18)), None)
    assert len(load_of(model, [image], [3], tiles=[37]).encoder) == 37
    assert load_of(model, [image], [3], tiles=[37]).projected == 37 * 36
    with pytest.raises(VLMCompressError, match="1 images but tiles of 2"):
        load_of(model, [image], [3], tiles=[37, 1])
    for row in (1, -1):
        with pytest.raises(VLMCompressError, match=f"image of row {row}, but text of 1 rows"):
            load_of(model, [(row, Grid(1, 6, 6), None)], [3])


def test_no_more_separators_than_tokens_are_planned():
    model = subject_of("random llava-next").model
    rows = tuple(Separator(16 + 5 * row + 4, 16 + 4 * row, 20 + 4 * row) for row in range(6))
    layout = Layout((Grid(1, 4, 4), Grid(1, 6, 4)), rows)
    parts = ((Grid(1, 4, 4), 3), (Grid(1, 6, 4), 5))
    few = load_of(model, [(0, layout, ImagePlan(parts, {2: 4, 5: 0}, 6))], [10])
    assert few.rows == ((24, 24, 18, 18, 18, 10),)
    assert load_of(model, [(0, layout, None)], [10]).rows == ((56,) * 6,)


def test_llava_7b_on_the_meta_device():
    """The exact count is that of calflops and the pairs: Vicuna-7B, 576 and 49 tokens."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        config = LlavaConfig(vision_config=vision, text_config=LlamaConfig())
        model = LlavaForConditionalGeneration(config).half()
    shape, images = shape_of(model), [(0, Grid(1, 24, 24), None)]
    costs = first_token(shape, load_of(model, images, [49]))
    pairs = 32 * 4 * 4096 * 625 * 626 / 2
    head = 2 * 4096 * 32000
    prefill = prefill_flops(VICUNA, [576] * 32, 49, "calflops") - 625 * head
    assert sum(costs.prefill) == prefill + pairs
    assert costs.lm_head == head
    assert costs.kv_bytes == kv_bytes(VICUNA, [625] * 32)
    layers = 24 * (2 * 577 * 12 * 1024**2 + 4 * 1024 * 577**2)
    assert costs.encoder == layers + 2 * 576 * 3 * 14**2 * 1024
    assert costs.projector == 2 * 576 * (1024 + 4096) * 4096
    assert costs.total == sum(costs.prefill) + head + costs.encoder + costs.projector
