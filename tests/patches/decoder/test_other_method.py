"""A cache that one method filled, and on which another one goes on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from built_subjects import subject_of
from kv_cache import cache_in
from oracle import TOLERANCE, more, oracle

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedCallError, UnsupportedModelError

SETTINGS = {
    "divprune": "25%",
    "fastv": "60%",
    "pyramiddrop": "60%",
    "inject(layer=2)": None,
    "restore(divprune, distance=False)": "25%",
}


def turns(subject: Any, methods: list[str], images: list[int]) -> tuple[Any, Any, torch.Tensor]:
    """Ragged prompts, then turns of two rows, each by its method: report, prompt, last logits."""
    first = [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)]
    whole, reports = subject.batch(*first), []
    pixels = [[one] for _, one in first]
    with compress(subject.model, methods[0], SETTINGS[methods[0]]) as c:
        cache = cache_in(subject.generate(whole, return_dict_in_generate=True, max_new_tokens=1))
        reports.append(c.report())
    for turn, (method, count) in enumerate(zip(methods[1:], images, strict=True)):
        new = [subject.prompt(count, 10 * turn + row) for row in (3, 4)]
        ids = torch.tensor([ids for ids, _ in new])
        mask = torch.cat([whole["attention_mask"], torch.ones_like(ids)], 1)
        ids = torch.cat([whole["input_ids"], ids], 1)
        whole |= {"input_ids": ids, "attention_mask": mask, **subject.types(ids)}
        for own, (_, one) in zip(pixels, new, strict=True):
            own.append(one)
        whole |= subject.images([one for own in pixels for one in own])
        with compress(subject.model, method, SETTINGS[method]) as c:
            given = subject.images([one for _, one in new]) if count else {}
            logits = more(subject, whole, cache, given)
            reports += [c.report()] if count else []
    found = [i for row in (0, 1) for report in reports for i in report.images if i.row == row]
    numbered = [replace(image, index=number) for number, image in enumerate(found)]
    return replace(reports[0], images=numbered), whole, logits


@pytest.mark.parametrize("images", [[1], [1, 0], [1, 1]])
@pytest.mark.parametrize(
    "methods", [["divprune", "fastv"], ["divprune", "pyramiddrop"], ["fastv", "divprune"]]
)
@pytest.mark.parametrize("name", ["random llava", "random qwen2.5-vl"])
def test_a_later_turn_by_another_method_equals_the_whole_masked(name, methods, images):
    subject = subject_of(name)
    methods = [*methods, methods[-1]][: len(images) + 1]
    report, whole, logits = turns(subject, methods, images)
    assert (logits - oracle(report, subject, whole)).abs().max() < TOLERANCE


@pytest.mark.parametrize("other", ["divprune", "fastv", "inject(layer=2)"])
@pytest.mark.parametrize("first", ["restore(divprune, distance=False)", "inject(layer=2)"])
def test_what_a_cache_holds_keeps_its_bias_and_its_layers(first, other):
    subject = subject_of("random llava")
    _, _, wanted = turns(subject, [first, first], [0])
    _, _, found = turns(subject, [first, other], [0])
    assert (found - wanted).abs().max() < TOLERANCE
    _, _, plain = turns(subject, ["divprune", "divprune"], [0])
    assert (plain - wanted).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("first", list(SETTINGS))
def test_the_bare_model_refuses_what_it_would_misread(first):
    """It goes on where all layers hold the same tokens, and no row is filled up."""
    subject = subject_of("random llava")
    for prompts in (
        [subject.prompt(1, 1, text=4)],
        [subject.prompt(1, 1, text=4), subject.prompt(2, 2, text=9)],
    ):
        whole = subject.batch(*prompts)
        with compress(subject.model, first, SETTINGS[first]):
            out = subject.generate(whole, return_dict_in_generate=True, max_new_tokens=1)
            cache = cache_in(out)
            ids = torch.cat([whole["input_ids"], torch.tensor([[5, 6, 7]] * len(prompts))], 1)
            mask = torch.cat([whole["attention_mask"], torch.ones_like(ids[:, :3])], 1)
            whole |= {"input_ids": ids, "attention_mask": mask}
            wanted = more(subject, whole, copy.deepcopy(cache), {})
        if first == "divprune" and len(prompts) == 1:
            assert (more(subject, whole, cache, {}) - wanted).abs().max() < TOLERANCE
            continue
        with pytest.raises(UnsupportedCallError, match=r"call compress\(\) again") as error:
            more(subject, whole, cache, {})
        assert "\n" not in str(error.value)


def test_a_bias_in_the_cache_is_refused_where_no_mask_can_have_it():
    subject = subject_of("random llava")
    config = subject.lm.config
    implementation = config._attn_implementation
    first = subject.prompt(1, 1)
    with compress(subject.model, "restore(divprune)", 9):
        out = subject.generate(subject.batch(first), return_dict_in_generate=True, max_new_tokens=1)
    ids = torch.cat([out.sequences[:, :-1], torch.tensor([[5, 6]])], 1)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with compress(subject.model, "divprune", 9):
        config._attn_implementation_internal = "flash_attention_2"
        try:
            with pytest.raises(UnsupportedModelError, match="what the cache holds needs") as error:
                more(subject, whole, cache_in(out), {})
        finally:
            config._attn_implementation_internal = implementation
    assert "\n" not in str(error.value)
