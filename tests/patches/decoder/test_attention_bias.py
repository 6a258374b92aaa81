"""What RESTORE adds to attention logits: against the bare model with the bias in its masks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from bare import last_logits
from mechanisms import MECHANISMS
from oracle import BUDGET, TOLERANCE, drops, masked, second_turn
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError, VLMCompressError
from vlmcompress.patches.sequence.attention_bias import TokenBias, check_bias, closer
from vlmcompress.patches.sequence.attention_masks import LayerKinds

CASES = {
    "restore(divprune)": (True, True, None),
    "restore(divprune, distance=False)": (True, False, None),
    "restore(divprune, sizes=False, merge=False)": (False, True, "divprune"),
    "restore(pool)": (True, True, "pool"),
}
"""Whether it has a bias of sizes and of distances, and what keeps the same tokens without any."""


def frequencies(subject: Any, layer: int) -> torch.Tensor:
    """[F] of the rotary embedding of a layer, from the configuration alone."""
    config = subject.lm.config
    kinds = getattr(config, "layer_types", None) or [None] * subject.layers
    rope = config.rope_parameters
    rope = rope.get(kinds[layer], rope) if kinds[layer] else rope
    turns = int(config.head_dim * (rope.get("partial_rotary_factor") or 1)) // 2
    factor = rope.get("factor", 1.0) if rope.get("rope_type") == "linear" else 1.0
    steps = torch.arange(turns, dtype=torch.float64) / turns
    return rope["rope_theta"] ** -steps / factor


def bias_of(
    report: Any, subject: Any, inputs: Any, sizes: bool, distance: bool
) -> list[torch.Tensor]:
    """Per layer [B, L, L] float64, image by image and pair by pair of positions."""
    batch, length = inputs["input_ids"].shape
    positions = subject.positions(inputs)
    positions = positions if positions.dim() == 2 else positions[-3]
    positions = positions.expand(batch, -1).double()
    found = [torch.zeros(batch, length, length, dtype=torch.float64) for _ in range(subject.layers)]
    for row, images in groupby(report.images, key=lambda image: image.row):
        spans = subject.columns(inputs["input_ids"][row])
        apart = (positions[row][:, None] - positions[row])[..., None]
        for layer, bias in enumerate(found):
            if distance:
                alike = (apart * frequencies(subject, layer)).cos().mean(-1)
                bias[row] += (2 - alike).log()
        for image, columns in zip(images, spans, strict=True):
            for place, group in zip(image.kept, image.groups, strict=True):
                column = subject.visual(columns)[place]
                for layer, bias in enumerate(found):
                    even = image.before / image.after
                    bias[row, :, column] += math.log(even if layer == 0 else len(group)) * sizes
    return found


def expected(report: Any, subject: Any, inputs: Any, bias: Any, attention: str) -> torch.Tensor:
    hidden = masked(report, subject, inputs, drops(report, subject, inputs), attention, bias)
    return subject.model.lm_head(hidden[:, -1])


@pytest.fixture(params=list(MECHANISMS))
def model(request: pytest.FixtureRequest) -> Any:
    return SUBJECTS[request.param]()


@pytest.mark.rotating(axis="model", by="spec", count=4)
@pytest.mark.parametrize("spec", list(CASES))
def test_the_bias_is_that_of_the_definition(model, spec):
    inputs = model.batch(model.prompt(1, 3, text=4), model.prompt(2, 4, text=9))
    *wanted, plain = CASES[spec]
    for attention in ("sdpa", "eager"):
        model.model.set_attn_implementation(attention)
        with compress(model.model, spec, budget="50%") as c:
            short = last_logits(model, inputs)
        report = c.report()
        bias = bias_of(report, model, inputs, *wanted)
        assert (short - expected(report, model, inputs, bias, attention)).abs().max() < TOLERANCE
        without = expected(report, model, inputs, None, attention)
        assert (short - without).abs().max() > 100 * TOLERANCE
        if plain is not None:
            with compress(model.model, plain, budget="50%"):
                same = last_logits(model, inputs)
            assert (same - without).abs().max() < TOLERANCE


def follows(name: str, spec: str, share: str) -> Any:
    """The report of a model with the bias in all layers, whatever enters them."""
    model = SUBJECTS[name]()
    inputs = model.batch(model.prompt(1, 3, text=4), model.prompt(2, 4, text=9))
    with compress(model.model, spec, budget=share) as c:
        short = last_logits(model, inputs)
        ids = model.generate(inputs)
        assert torch.equal(ids, model.generate(inputs, use_cache=False))
    report = c.report()
    bias = bias_of(report, model, inputs, True, True)
    assert (short - expected(report, model, inputs, bias, "sdpa")).abs().max() < TOLERANCE
    return report


@pytest.mark.parametrize("name", ["random llava", "random qwen2.5-vl", "random gemma3"])
def test_layers_that_drop_rank_without_it_and_leave_it(name):
    report = follows(name, "restore(divprune)+fastv(k=2)", "35%")
    assert all(0 < len(image.cuts[2]) < image.after for image in report.images)


@pytest.mark.parametrize("name", ["random llava", "random qwen2.5-vl"])
def test_tokens_that_enter_late_take_it_along(name):
    report = follows(name, "restore(divprune)+inject(layer=2)", "25%")
    assert all(image.enters == 2 for image in report.images)


@pytest.mark.parametrize("beams", [1, 2])
def test_generating_with_a_cache_equals_recomputing_every_step(model, beams):
    if beams > 1 and not model.repeats:
        pytest.skip("this version of transformers cannot repeat these clips")
    inputs = model.batch(model.prompt(1, 3, text=4), model.prompt(2, 4, text=9))
    bare = model.generate(inputs, num_beams=beams)
    with compress(model.model, "restore(divprune)", budget="25%"):
        cached = model.generate(inputs, num_beams=beams)
        whole = model.generate(inputs, num_beams=beams, use_cache=False)
    assert torch.equal(cached, whole)
    assert torch.equal(model.generate(inputs, num_beams=beams), bare)


@pytest.mark.parametrize("new_images", [0, 1])
@pytest.mark.parametrize("name", ["random llava", "random qwen2.5-vl"])
def test_a_second_turn_remembers_the_sizes(name, new_images, monkeypatch):
    model, spec = SUBJECTS[name](), "restore(divprune, distance=False)"
    monkeypatch.setitem(BUDGET, spec, "25%")
    report, whole, logits = second_turn(model, spec, new_images)
    bias = bias_of(report, model, whole, True, False)
    assert (logits - expected(report, model, whole, bias, "sdpa")).abs().max() < TOLERANCE
    forgotten = replace(
        report, images=[replace(i, groups=[[k] for k in i.kept]) for i in report.images]
    )
    wrong = bias_of(forgotten, model, whole, True, False)
    assert (logits - expected(report, model, whole, wrong, "sdpa")).abs().max() > 10 * TOLERANCE


def test_a_row_that_loses_nothing_is_as_without(random_subject):
    prompts = [random_subject.prompt(1, 3, text=4), random_subject.prompt(0, 5)]
    inputs = random_subject.batch(*prompts)
    bare = last_logits(random_subject, inputs)
    with compress(random_subject.model, "restore(divprune)", budget="25%"):
        short = last_logits(random_subject, inputs)
    assert (short - bare)[1].abs().max() < TOLERANCE
    assert (short - bare)[0].abs().max() > 100 * TOLERANCE


def test_hand_examples_of_the_distance():
    """64 frequencies of base 10000, as in LLaVA-1.5."""
    steps = torch.arange(64) / 64
    found = closer(torch.tensor([[0, 1, 2, 10, 100, 576]]), 10000.0**-steps)[0, 0]
    assert found.tolist() == pytest.approx([0, 0.0294, 0.0984, 0.2859, 0.4205, 0.5688], abs=1e-4)
    far = closer(torch.tensor([[40000, 40001, 40576]]), 10000.0**-steps)[0, 0]
    assert far.tolist() == pytest.approx([0, 0.0294, 0.5688], abs=1e-4)


def test_columns_that_nobody_knows_are_plain_tokens():
    bias = TokenBias(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    keys, slots = torch.tensor([[1, 0, 2, 7]]), torch.tensor([[0]])
    assert bias.of(0, "full_attention", keys, slots).flatten().tolist() == [2, 1, 0, 0]
    assert bias.of(5, "full_attention", keys, slots).flatten().tolist() == [4, 3, 0, 0]
    assert bias.until(1).of(5, "full_attention", keys, slots).flatten().tolist() == [0, 3, 0, 0]


def kinds(*names: str, flash: bool = False) -> LayerKinds:
    return LayerKinds(names, {}, False, False, flash)


@pytest.mark.parametrize(
    ("layers", "distance", "words"),
    [
        (kinds("full_attention", flash=True), False, "flash_attention_2 cannot take: use eager"),
        (kinds("full_attention", "linear_attention"), False, "another kind: linear_attention"),
        (kinds("full_attention"), True, "has no rotary frequencies: give distance=False"),
    ],
)
def test_what_cannot_take_it_is_refused_in_one_line(layers, distance, words):
    decoder = torch.nn.Module()
    decoder.config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()
    with pytest.raises(UnsupportedModelError, match=words) as error:
        check_bias(decoder, layers, distance, "restore(divprune)")
    assert "\n" not in str(error.value)
    assert "restore(divprune)" in str(error.value)


def test_flash_is_refused_before_anything_runs(random_subject):
    random_subject.lm.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(VLMCompressError, match=r"restore\(divprune\) adds a bias"):
        compress(random_subject.model, "restore(divprune)", budget="25%")
