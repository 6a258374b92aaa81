"""Tokens that enter at a middle layer, against the bare model: closed before, reset there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from agreeing_answers import agreeing
from bare import bare, last_logits
from built_subjects import subject_of
from kv_cache import cache_in
from mechanisms import MECHANISMS
from oracle import LATE, TOLERANCE, budget, continued, more, oracle, refused, second_turn
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnsupportedCallError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods import get_method
from vlmcompress.methods.contracts.decoder import mean_tokens
from vlmcompress.patches.sequence.earlier_inputs import EarlierInputs

NAMES = [name for name in [*MECHANISMS, "random internvl"] if "qwen3-vl" not in name]
SOME = ["random llava", "random llava-next", "random qwen2.5-vl", "random gemma3"]


def two(subject: Any) -> list[Any]:
    """One image, and two after a longer text: what is shorter is padded on the left."""
    return [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", range(6))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.pairs
def test_entering_equals_closing_and_resetting(name, layer, attention):
    subject = subject_of(name)
    inputs = subject.batch(*two(subject))
    full = bare(subject, inputs).logits
    before = snapshot(subject.model)
    subject.model.set_attn_implementation(attention)
    same = last_logits(subject, inputs)
    with compress(subject.model, f"inject(layer={layer})") as c:
        late = last_logits(subject, inputs)
        report = c.report()
    subject.model.set_attn_implementation("sdpa")
    assert snapshot(subject.model) == before
    for image in report.images:
        assert image.per_layer == [0] * layer + [image.before] * (6 - layer)
        assert image.separators == [0] * layer + [len(subject.separators)] * (6 - layer)
    if layer == 0:
        assert torch.equal(late, same)
        assert not report.engaged
        return
    assert (late - oracle(report, subject, inputs)).abs().max() < TOLERANCE
    assert (late - full).abs().max() > 100 * TOLERANCE
    # What they enter with matters, and the layers where they are closed do.
    never = [replace(image, cuts={0: [], layer - 1: image.kept}) for image in report.images]
    other = oracle(replace(report, images=never), subject, inputs)
    assert (late - other).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("method", ["divprune+inject", "divprune+inject(layer=4)", "pool+inject"])
@pytest.mark.parametrize("name", SOME)
def test_behind_a_method_before_the_decoder(name, method):
    subject = subject_of(name)
    inputs = subject.batch(*two(subject))
    with compress(subject.model, method, "25%") as c:
        late = last_logits(subject, inputs)
        report = c.report()
    for image in report.images:
        assert image.per_layer[0] == 0 < image.after == image.per_layer[-1] < image.before
        assert image.mean <= image.before / 4 + 0.5
        assert method != "divprune+inject(layer=4)" or image.mean >= image.before / 4 - 0.5
    assert (late - oracle(report, subject, inputs)).abs().max() < TOLERANCE


@torch.no_grad()
def greedy(subject: Any, inputs: Any, report: Any, steps: int) -> torch.Tensor:
    """What the bare model of the oracle writes, all of it computed again for each token."""
    given, length = dict(inputs), inputs["input_ids"].shape[1]
    for step in range(steps):
        positions = continued(subject, inputs, given["attention_mask"], step)
        logits = oracle(report, subject, given | {"position_ids": positions})
        logits[:, [subject.image_token, *subject.reserved]] = -torch.inf
        ids = torch.cat([given["input_ids"], logits.argmax(-1)[:, None]], 1)
        mask = torch.cat([given["attention_mask"], torch.ones_like(ids[:, :1])], 1)
        given |= {"input_ids": ids, "attention_mask": mask, **subject.types(ids)}
    return given["input_ids"][:, length:]


@pytest.mark.parametrize("method", LATE)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.pairs
def test_answers_are_those_of_the_oracle_with_and_without_a_cache(name, method):
    subject = subject_of(name)
    prompts = two(subject)
    inputs = subject.batch(*prompts)
    bare_ids = bare(subject, inputs).ids
    with compress(subject.model, method, budget(method)) as c:
        last_logits(subject, inputs)
        report = c.report()
        ids = agreeing(subject, prompts, inputs)
    assert torch.equal(ids[:, -6:], greedy(subject, inputs, report, 6))
    assert not torch.equal(ids, bare_ids)


@pytest.mark.parametrize("name", SOME)
def test_several_sequences_and_prompt_lookup(name):
    subject = subject_of(name)
    ids, pixels = subject.prompt(1, 7)
    inputs = subject.batch((ids + ids[:3] + ids[-6:] + ids[:3], pixels), subject.prompt(2, 2))
    one = subject.batch((ids + ids[:3] + ids[-6:] + ids[:3], pixels))
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7}
    with compress(subject.model, "inject(layer=2)"):
        torch.manual_seed(0)
        cached = subject.generate(inputs, **options)
        torch.manual_seed(0)
        assert torch.equal(cached, subject.generate(inputs, use_cache=False, **options))
        greedy = subject.generate(one, max_new_tokens=10)
        looked = subject.generate(one, max_new_tokens=10, prompt_lookup_num_tokens=3)
        assert torch.equal(greedy, looked)


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("method", LATE)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.pairs
def test_a_second_turn_on_the_cache_equals_the_whole(name, method, images):
    subject = subject_of(name)
    if images and refused(subject, method):
        return
    report, whole, logits = second_turn(subject, method, images)
    assert (logits - oracle(report, subject, whole)).abs().max() < TOLERANCE


def test_layers_before_cache_text_alone():
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(1, 1, text=4))
    length, new = inputs["input_ids"].shape[1], 3
    with compress(subject.model, "inject(layer=2)") as c:
        out = subject.generate(inputs, return_dict_in_generate=True, max_new_tokens=new)
        text = str(c.report())
    assert "0 x2, 36 x4" in text
    assert "enter at layer 2" in text
    held = [layer.keys.shape[2] for layer in cache_in(out).layers]
    assert held == [length - 36 + new - 1] * 2 + [length + new - 1] * 4


def test_rows_of_a_batch_hold_no_more_than_the_longest_text_before():
    """Two images, or one and more text: 36 tokens more or less below layer 2 would be seen."""
    subject = subject_of("random llava")
    inputs = subject.batch(*two(subject))
    texts = (inputs["attention_mask"].bool() & (inputs["input_ids"] != subject.image_token)).sum(1)
    with compress(subject.model, "inject(layer=2)"):
        out = subject.generate(inputs, return_dict_in_generate=True, max_new_tokens=1)
    held = [layer.keys.shape[2] for layer in cache_in(out).layers]
    assert held == [int(texts.max())] * 2 + [inputs["input_ids"].shape[1]] * 4
    assert texts[0] != texts[1]


def test_a_third_turn_knows_what_the_second_brought():
    """The padding of a row without a picture lies where wrong columns would look."""
    subject = subject_of("random llava")
    first = subject.prompt(1, 1, text=4)
    inputs = subject.batch(first, subject.prompt(0, 2, text=3))
    second = [subject.prompt(1, seed) for seed in (10, 11)]
    third = torch.tensor([subject.prompt(0, seed)[0] for seed in (12, 13)])
    with compress(subject.model, "inject(layer=2)") as c:
        out = subject.generate(inputs, return_dict_in_generate=True, max_new_tokens=1)
        one, cache, whole = c.report(), cache_in(out), {**inputs}
        two = one
        for ids, new in (
            (torch.tensor([ids for ids, _ in second]), [pixels for _, pixels in second]),
            (third, []),
        ):
            mask = torch.cat([whole["attention_mask"], torch.ones_like(ids)], 1)
            whole |= {"input_ids": torch.cat([whole["input_ids"], ids], 1), "attention_mask": mask}
            logits = more(subject, whole, cache, subject.images(new) if new else {})
            two = c.report() if new else two
    images = sorted([*one.images, *two.images], key=lambda image: image.row)
    numbered = [replace(image, index=number) for number, image in enumerate(images)]
    report = replace(one, images=numbered)
    whole |= subject.images([pixels for _, pixels in (first, *second)])
    assert (logits - oracle(report, subject, whole)).abs().max() < TOLERANCE


def test_images_of_one_prompt_may_enter_at_different_layers():
    """12 tokens are a third of the first, and two thirds of what the mask leaves of the second."""
    subject = subject_of("random llava")
    inputs = subject.batch(subject.prompt(2, 1, text=4), subject.prompt(1, 2))
    inputs["attention_mask"][0, subject.columns(inputs["input_ids"][0])[1][5:23]] = 0
    with compress(subject.model, "inject", 12) as c:
        late = last_logits(subject, inputs)
        report = c.report()
        assert torch.equal(subject.generate(inputs), subject.generate(inputs, use_cache=False))
    assert [image.enters for image in report.images] == [4, 2, 4]
    assert (late - oracle(report, subject, inputs)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("method", "asked", "schedule", "mean"),
    [
        # 12 tokens and 6 layers: each layer that they are kept out of saves 2 on average.
        ("inject", None, {0: 0, 3: 12}, 6),
        ("inject", 12, {}, 12),
        ("inject", 11, {0: 0, 1: 12}, 10),
        ("inject", 6, {0: 0, 3: 12}, 6),
        ("inject", 5, {0: 0, 4: 12}, 4),
        ("inject", 2, {0: 0, 5: 12}, 2),
        ("inject(layer=4)", None, {0: 0, 4: 12}, 4),
        ("inject(layer=4)", 4, {0: 0, 4: 12}, 4),
        ("inject(layer=4)", 9, {0: 0, 4: 12}, 4),
        ("inject(layer=0)", None, {}, 12),
    ],
)
def test_by_hand(method, asked, schedule, mean):
    found = get_method(method).schedule(6, 12, asked)
    assert found == schedule
    assert mean_tokens(6, 12, found) == mean


@pytest.mark.parametrize("layers", [1, 2, 6, 28, 32])
@pytest.mark.parametrize("tokens", [0, 1, 7, 576])
def test_the_first_layer_within_the_budget(layers, tokens):
    for asked in range(tokens + 1):
        means = [tokens * (layers - m) / layers for m in range(layers)]
        if asked < means[-1]:
            with pytest.raises(BudgetError, match="cannot keep fewer than"):
                get_method("inject").schedule(layers, tokens, asked)
            continue
        found = get_method("inject").schedule(layers, tokens, asked)
        best = max(mean for mean in means if mean <= asked + 1e-9)
        assert mean_tokens(layers, tokens, found) == pytest.approx(best)


@pytest.mark.parametrize(
    ("name", "method", "asked", "kind", "words"),
    [
        ("random llava", "inject(layer=6)", None, BudgetError, "one of the layers 0 to 5"),
        ("random llava", "inject(layer=-1)", None, VLMCompressError, "layer must be 0 or more"),
        ("random llava", "inject(layer=2)", "50%", BudgetError, "24 on average.*budget is 18"),
        ("random llava", "inject", 5, BudgetError, r"36/6 = 6 visual tokens on average, got 5"),
        ("random llava", "inject+pyramiddrop", None, CompositionError, "both act at the decoder"),
        ("random qwen3-vl", "inject", None, UnsupportedModelError, "DeepStack"),
    ],
)
def test_what_it_refuses(name, method, asked, kind, words):
    subject = subject_of(name)
    with pytest.raises(kind, match=words) as error, compress(subject.model, method, asked):
        last_logits(subject, subject.batch(subject.prompt(1, 1)))
    assert "\n" not in str(error.value)


def test_flash_attention_is_refused_before_anything_runs():
    subject = SUBJECTS["random llava"]()
    subject.lm.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="masks of its own, which flash_attention_2"):
        compress(subject.model, "inject")


def test_renumbered_positions_are_refused():
    with pytest.raises(CompositionError, match="give positions='keep', got 'renumber'"):
        compress(subject_of("random llava").model, "inject", positions="renumber")


def test_a_prompt_without_text_is_refused_and_one_that_ends_with_an_image_is_not():
    subject = subject_of("random llava")
    ids, pixels = subject.prompt(1, 1)
    with compress(subject.model, "inject(layer=2)") as c:
        with pytest.raises(UnsupportedCallError, match="prompt 0 has no text"):
            last_logits(subject, subject.batch((subject.image(), pixels)))
        inputs = subject.batch((ids[:3] + subject.image(), pixels))
        late = last_logits(subject, inputs)
        report = c.report()
    assert (late - oracle(report, subject, inputs)).abs().max() < TOLERANCE


def test_it_remembers_nothing_to_rank_by(monkeypatch):
    subject = subject_of("random llava")
    seen: list[int] = []
    wants = EarlierInputs.wants
    monkeypatch.setattr(
        EarlierInputs, "wants", lambda self, n: wants(self, n) and not seen.append(n)
    )
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, "fastv"):
        last_logits(subject, inputs)
    assert seen
    seen.clear()
    with compress(subject.model, "inject(layer=2)"):
        last_logits(subject, inputs)
    assert not seen
