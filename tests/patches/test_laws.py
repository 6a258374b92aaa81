"""The laws of a shortened sequence: nothing may change but the tokens that are gone."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch

from vlmcompress.api import compress

TOLERANCE = 1e-4
SELECTORS = ["divprune", "random", "stride", "pool", "text-only"]
DECODER = ["fastv", "pyramiddrop"]
BOTH = ["divprune+fastv", "pool+pyramiddrop"]
BUDGET = {"text-only": None, "fastv": "55%", "pyramiddrop": "55%"}


def budget(method: str) -> str | None:
    return BUDGET.get(method, "25%")


def drops(report: Any, subject: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Per decoder layer [B, L]: which columns of the full prompt are still there."""
    ids = inputs["input_ids"]
    present = [inputs["attention_mask"].bool().clone() for _ in range(subject.layers)]
    spans = {}
    for row, line in enumerate(ids):
        columns = (line == subject.image_token).nonzero()[:, 0]
        spans[row] = list(columns.split(subject.tokens_per_image))
    for row, images in groupby(report.images, key=lambda image: image.row):
        for image, columns in zip(images, spans[row], strict=True):
            for layer in range(subject.layers):
                kept = image.kept
                for cut, survivors in sorted(image.cuts.items()):
                    kept = survivors if cut <= layer else kept
                present[layer][row, columns] = False
                present[layer][row, columns[kept]] = True
    return present


def embed(report: Any, subject: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Input embeddings of the full prompt, merged tokens written at the place of their group."""
    base = subject.model.model
    embeds = base.get_input_embeddings()(inputs["input_ids"])
    if not any(name.startswith("pixel_values") for name in inputs):
        return embeds
    features = subject.features(inputs)
    for image, feature in zip(report.images, features, strict=True):
        if image.groups is not None:
            original = feature.clone()
            for group in image.groups:
                feature[min(group)] = original[group].mean(0)
    mask = (inputs["input_ids"] == subject.image_token)[..., None].expand_as(embeds)
    return embeds.masked_scatter(mask, features)


def oracle(
    report: Any,
    subject: Any,
    inputs: dict[str, torch.Tensor],
    attentions: int | None = None,
    images: Any = (),
) -> torch.Tensor:
    """The bare model on the full prompt, dropped tokens closed by a 4-D mask for each layer.

    Returns last-token logits, or the attention [B, H, L, L] of one layer, as it would be if that
    layer did not cut `images`.
    """
    present = drops(report, subject, inputs)
    if attentions is not None:
        uncut = [
            replace(i, cuts={c: s for c, s in i.cuts.items() if c != attentions or i not in images})
            for i in report.images
        ]
        present[attentions] = drops(replace(report, images=uncut), subject, inputs)[attentions]
    length = inputs["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    lm, seen = subject.model.model.language_model, []
    handles = []
    for layer, keys in zip(lm.layers, present, strict=True):
        allowed = (causal & keys[:, None, :])[:, None]
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

        def masked(_: Any, args: Any, kwargs: Any, mask: torch.Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.register_forward_pre_hook(masked, with_kwargs=True))
    if attentions is not None:
        handles.append(
            lm.layers[attentions].self_attn.register_forward_hook(lambda *a: seen.append(a[-1][1]))
        )
    implementation = lm.config._attn_implementation
    subject.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            hidden = lm(
                inputs_embeds=embed(report, subject, inputs),
                position_ids=subject.positions(inputs),
                attention_mask=inputs["attention_mask"],
            ).last_hidden_state
            logits = subject.model.lm_head(hidden[:, -1])
    finally:
        for handle in handles:
            handle.remove()
        subject.model.set_attn_implementation(implementation)
    return seen[0] if attentions is not None else logits


@torch.no_grad()
def last_logits(subject: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return subject.model(**inputs, position_ids=subject.positions(inputs)).logits[:, -1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [*SELECTORS[:-1], *DECODER, *BOTH])
def test_law_1_keeping_all_tokens_changes_not_one_bit(subject, prompts, method, attention):
    subject.model.set_attn_implementation(attention)
    inputs = subject.batch(*prompts)
    bare, ids = last_logits(subject, inputs), subject.generate(inputs)
    with compress(subject.model, method, budget="100%") as c:
        assert torch.equal(last_logits(subject, inputs), bare)
        assert torch.equal(subject.generate(inputs), ids)
    assert not c.report().engaged


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [*SELECTORS, *DECODER, *BOTH])
def test_law_2_dropping_equals_masking_and_law_7_it_differs(subject, prompts, method, attention):
    subject.model.set_attn_implementation(attention)
    inputs = subject.batch(*prompts)
    bare = last_logits(subject, inputs)
    with compress(subject.model, method, budget=budget(method)) as c:
        short = last_logits(subject, inputs)
    report = c.report()
    assert report.engaged
    assert (short - oracle(report, subject, inputs)).abs().max() < TOLERANCE
    with_images = [row for row, (ids, _) in enumerate(prompts) if subject.image_token in ids]
    assert ((short - bare).abs().amax(1) > 100 * TOLERANCE)[with_images].all()


@pytest.mark.parametrize("method", [*SELECTORS, *DECODER, *BOTH])
def test_law_3_generating_with_a_cache_equals_recomputing_every_step(subject, prompts, method):
    inputs = subject.batch(*prompts)
    with compress(subject.model, method, budget=budget(method)):
        cached = subject.generate(inputs)
        assert torch.equal(cached, subject.generate(inputs, use_cache=False))
        cached = subject.generate(inputs, num_beams=3, num_return_sequences=2)
        again = subject.generate(inputs, num_beams=3, num_return_sequences=2, use_cache=False)
        assert torch.equal(cached, again)


@pytest.mark.parametrize("method", ["divprune", "fastv", "divprune+fastv"])
def test_law_3_sampling_and_several_sequences(subject, prompts, method):
    inputs = subject.batch(*prompts)
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7}
    with compress(subject.model, method, budget=budget(method)):
        torch.manual_seed(0)
        cached = subject.generate(inputs, **options)
        torch.manual_seed(0)
        assert torch.equal(cached, subject.generate(inputs, use_cache=False, **options))


@pytest.mark.parametrize("method", ["divprune", "fastv", "pyramiddrop", "divprune+fastv"])
def test_law_3_prompt_lookup_decoding_equals_greedy(subject, method):
    ids, pixels = subject.prompt(1, 7)
    inputs = subject.batch((ids + ids[:3] + ids[-6:] + ids[:3], pixels))
    with compress(subject.model, method, budget=budget(method)):
        greedy = subject.generate(inputs, max_new_tokens=10)
        assisted = subject.generate(inputs, max_new_tokens=10, prompt_lookup_num_tokens=3)
        assert torch.equal(greedy, assisted)


def second_turn(
    subject: Any, method: str, new_images: int
) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """Two turns on one cache: a report of both, the whole prompt, the second's first logits."""
    first = [subject.prompt(1, 8, text=4), subject.prompt(2, 9, text=7)]
    inputs = subject.batch(*first)
    following = [subject.prompt(new_images, 10), subject.prompt(new_images, 11)]
    with compress(subject.model, method, budget=budget(method)) as c:
        out = subject.generate(inputs, return_dict_in_generate=True)
        one = c.report()
        answer = out.sequences[:, inputs["input_ids"].shape[1] :]
        rest = torch.tensor([ids for ids, _ in following])
        new = torch.ones(2, answer.shape[1] + rest.shape[1], dtype=torch.long)
        second = {
            "input_ids": torch.cat([out.sequences, rest], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], new], 1),
            "past_key_values": out.past_key_values,
        }
        second |= subject.images(torch.cat([pixels for _, pixels in following]))
        logits = subject.generate(
            second, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        ).logits[0]
        reports = [one, c.report()] if new_images else [one]
    images = [i for row in (0, 1) for report in reports for i in report.images if i.row == row]
    pixels = [turn[row][1] for row in (0, 1) for turn in (first, following)]
    whole = {name: second[name] for name in ("input_ids", "attention_mask")}
    numbered = [replace(image, index=index) for index, image in enumerate(images)]
    return replace(one, images=numbered), whole | subject.images(torch.cat(pixels)), logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["divprune", "pool", "fastv", "pyramiddrop", "divprune+fastv"])
def test_law_3_a_second_turn_on_the_cache_equals_the_whole_masked(subject, method, attention):
    subject.model.set_attn_implementation(attention)
    report, whole, logits = second_turn(subject, method, 0)
    assert (logits - oracle(report, subject, whole)).abs().max() < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["divprune", "pool", "fastv", "pyramiddrop", "divprune+fastv"])
def test_law_3_a_second_turn_with_a_new_image_equals_the_whole_masked(llava, method, attention):
    llava.model.set_attn_implementation(attention)
    report, whole, logits = second_turn(llava, method, 1)
    assert (logits - oracle(report, llava, whole)).abs().max() < TOLERANCE


@pytest.mark.parametrize("method", [*SELECTORS, *DECODER, *BOTH])
def test_law_4_a_batch_equals_its_members(subject, method):
    prompts = [subject.prompt(1, 3, text=4), subject.prompt(2, 4, text=9), subject.prompt(0, 5)]
    batch = subject.batch(*prompts)
    with compress(subject.model, method, budget=budget(method)) as c:
        together = subject.generate(batch)[:, batch["input_ids"].shape[1] :]
        images = c.report().images
        logits = last_logits(subject, batch)
        for row, prompt in enumerate(prompts):
            inputs = subject.batch(prompt)
            alone = subject.generate(inputs)[0, inputs["input_ids"].shape[1] :]
            assert torch.equal(together[row], alone)
            mine = [image for image in images if image.row == row]
            if mine:
                single = c.report().images
                assert [i.kept for i in mine] == [i.kept for i in single]
                assert [i.cuts for i in mine] == [i.cuts for i in single]
            assert (logits[row] - last_logits(subject, inputs)[0]).abs().max() < TOLERANCE


def check_ranking(
    subject: Any, report: Any, inputs: dict[str, torch.Tensor], image: Any, images: Any
) -> None:
    """Every cut of `image` kept the tokens that the last row of eager attention ranks highest.

    `images` are those that were cut in the same forward.
    """
    columns = (inputs["input_ids"][image.row] == subject.image_token).nonzero()[:, 0]
    mine = [other.index for other in report.images if other.row == image.row].index(image.index)
    columns = columns.split(subject.tokens_per_image)[mine]
    alive = image.kept
    assert image.cuts
    for cut, survivors in sorted(image.cuts.items()):
        layer = cut - 1 if report.method == "fastv" else cut
        attention = oracle(report, subject, inputs, layer, images)
        weights = attention[image.row, :, -1].mean(0)
        dropped = sorted(set(alive) - set(survivors))
        worst, best = weights[columns[survivors]].min(), weights[columns[dropped]].max()
        assert worst >= best - 1e-6
        assert weights[columns[alive]].std() > 1e-6
        alive = survivors


@pytest.mark.parametrize("method", DECODER)
def test_law_6_decoder_methods_keep_what_eager_attention_ranks_highest(subject, prompts, method):
    inputs = subject.batch(*prompts)
    with compress(subject.model, method, budget="55%") as c:
        last_logits(subject, inputs)
    report = c.report()
    for image in report.images:
        check_ranking(subject, report, inputs, image, report.images)


@pytest.mark.parametrize("method", DECODER)
def test_law_6_a_new_image_is_ranked_with_the_earlier_turn_in_the_softmax(llava, method):
    report, whole, _ = second_turn(llava, method, 1)
    newest = [[image for image in report.images if image.row == row][-1] for row in (0, 1)]
    for image in newest:
        check_ranking(llava, report, whole, image, newest)
