"""Undo, refusals, positions, order, reports: what the laws do not cover."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kv_cache import cache_in, cached
from mechanisms import MECHANISMS
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from vlmcompress.api import Compression, compress, list_models
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnknownNameError,
    UnsupportedCallError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods import get_method
from vlmcompress.patches.call.call_state import CallState
from vlmcompress.version import NEWEST_TRANSFORMERS


@pytest.mark.pairs(subject=MECHANISMS)
def test_law_5_removing_equals_never_having_been_there(subject):
    inputs = subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))
    ids = subject.generate(inputs)  # transformers installs its own lazy hooks on a first call
    before = snapshot(subject.model)
    weights = {k: v.clone() for k, v in subject.model.state_dict().items()}
    handle = compress(subject.model, "divprune+fastv", budget="25%")
    assert snapshot(subject.model) != before
    subject.generate(inputs)
    handle.remove()
    assert snapshot(subject.model) == before
    assert all(torch.equal(v, weights[k]) for k, v in subject.model.state_dict().items())
    assert torch.equal(subject.generate(inputs), ids)
    handle.remove()
    assert snapshot(subject.model) == before


@pytest.mark.pairs(subject=MECHANISMS)
def test_law_5_an_exception_inside_generate_restores_the_model(subject):
    inputs = subject.batch(subject.prompt(1, 1))
    ids = subject.generate(inputs)
    before = snapshot(subject.model)

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped by the test")

    last = subject.lm.layers[-1]
    with pytest.raises(RuntimeError, match="stopped by the test"):  # noqa: SIM117, PT012
        with compress(subject.model, "fastv", budget="55%"):
            handle = last.register_forward_hook(fail)
            try:
                subject.generate(inputs)
            finally:
                handle.remove()
    assert snapshot(subject.model) == before
    assert torch.equal(subject.generate(inputs), ids)


def test_an_exception_leaves_a_model_that_stays_compressed_usable(random_subject):
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, "fastv", budget="55%"):
        wanted = random_subject.generate(inputs)
        with pytest.raises(ValueError, match="do not match"):
            random_subject.generate(
                {
                    **inputs,
                    "input_ids": inputs["input_ids"][:, :-20],
                    "attention_mask": inputs["attention_mask"][:, :-20],
                }
            )
        assert torch.equal(random_subject.generate(inputs), wanted)


def test_a_second_compress_on_one_model_raises_and_keeps_the_first(random_subject):
    model = random_subject.model
    with compress(model, "divprune", budget=9) as c:
        with pytest.raises(CompositionError, match="compressed already"):
            compress(model, "fastv")
        random_subject.generate(random_subject.batch(random_subject.prompt(1, 1)))
        assert c.report().images[0].after == 9
    compress(model, "fastv").remove()


def test_two_models_are_independent(random_subject):
    other = copy.deepcopy(random_subject)
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    bare = other.generate(inputs)
    with compress(random_subject.model, "divprune", budget=9):
        short = random_subject.generate(inputs)
        assert torch.equal(other.generate(inputs), bare)
        with compress(other.model, "divprune", budget=9):
            assert torch.equal(other.generate(inputs), short)
    assert not torch.equal(bare, short)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"method": "divprun"}, UnknownNameError, "did you mean 'divprune'"),
        ({"method": "divprune", "ratoi": 0.1}, UnknownNameError, "ratio"),
        ({"method": "divprune", "budget": 0}, BudgetError, "above zero"),
        ({"method": "divprune", "budget": -3}, BudgetError, "above zero"),
        ({"method": "divprune", "budget": "a few"}, BudgetError, "not understood"),
        ({"method": "divprune", "budget": 2.5}, BudgetError, "whole number"),
        ({"method": "divprune", "budget": True}, BudgetError, "not understood"),
        ({"method": "divprune", "budget": "101%"}, BudgetError, "above 100%"),
        ({"method": "divprune", "budget": 37}, BudgetError, "above the 36 visual tokens"),
        ({"method": "fastv", "budget": 5}, BudgetError, "12"),
        ({"method": "pyramiddrop", "budget": 2}, BudgetError, "6"),
        ({"method": "full", "budget": 9}, BudgetError, "no budget"),
        ({"method": "random"}, BudgetError, "needs a budget"),
        ({"method": "divprune+random", "budget": 9}, CompositionError, "projector"),
        ({"method": "divprune", "positions": "shift"}, VLMCompressError, "keep or renumber"),
        ({"method": "divprune", "order": "any"}, VLMCompressError, "raster or method"),
    ],
    ids=lambda value: " ".join(f"{v}" for v in value.values()) if isinstance(value, dict) else "",
)
def test_bad_arguments_raise_one_line_and_leave_the_model_alone(
    random_subject, given, error, words
):
    before = snapshot(random_subject.model)
    with pytest.raises(error, match=words) as raised:
        compress(random_subject.model, **given)
    assert "\n" not in str(raised.value)
    assert snapshot(random_subject.model) == before


def test_an_unsupported_model_is_named_with_the_reason():
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=10,
    )
    with pytest.raises(UnsupportedModelError, match=r"llama.*has no module with get_image_f"):
        compress(LlamaForCausalLM(config), "divprune")
    with pytest.raises(UnsupportedModelError, match="no configuration"):
        compress(torch.nn.Linear(2, 2), "divprune")


def test_a_base_model_without_its_head_is_refused(random_subject):
    with pytest.raises(UnsupportedModelError, match="LlavaForConditionalGeneration"):
        compress(random_subject.model.model, "divprune")


def test_a_broken_seam_is_refused_by_name(random_subject):
    del random_subject.model.model.language_model.layers
    with pytest.raises(UnsupportedModelError, match="does not have the expected structure") as e:
        compress(random_subject.model, "divprune")
    assert f"pip install 'transformers=={NEWEST_TRANSFORMERS}'" in str(e.value)


def test_the_cache_has_one_of_its_names_or_the_model_is_refused(random_subject):
    lm = random_subject.model.model.language_model
    lm.forward = lambda inputs_embeds, attention_mask, position_ids: None
    with pytest.raises(UnsupportedModelError, match="has no parameter 'cache' or 'past_key_val"):
        compress(random_subject.model, "divprune")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cache_under_the_name_of_an_older_release_is_continued(random_subject):
    inputs, more = random_subject.batch(random_subject.prompt(1, 1)), torch.tensor([[7]])
    with compress(random_subject.model, "divprune", budget=2):
        caches = [cache_in(random_subject.model(**inputs, use_cache=True)) for _ in range(2)]
        now = random_subject.model(more, **cached(random_subject.model, caches[0])).logits
        old = random_subject.model(more, past_key_values=caches[1]).logits
    assert torch.equal(old, now)
    assert not torch.equal(now, random_subject.model(more).logits)


def _static(subject: Any, inputs: Any) -> None:
    cache = StaticCache(config=subject.model.config.get_text_config(), max_cache_len=99)
    subject.model(**inputs, **cached(subject.model, cache))


_REFUSED = {
    "static cache by name": lambda s, i: s.generate(i, cache_implementation="static"),
    "static cache": _static,
    "chunked prefill": lambda s, i: s.generate(i, prefill_chunk_size=8),
    "labels": lambda s, i: s.model(**i, labels=i["input_ids"]),
    "logits_to_keep tensor": lambda s, i: s.model(**i, logits_to_keep=torch.tensor([0])),
    "training mode": lambda s, i: s.model.train()(**i),
    "4-D mask": lambda s, i: s.model(**{**i, "attention_mask": torch.ones(1, 1, 50, 50)}),
    "inputs_embeds": lambda s, i: s.model(
        inputs_embeds=s.model.get_input_embeddings()(i["input_ids"]),
        pixel_values=i["pixel_values"],
    ),
}


@pytest.mark.parametrize("call", list(_REFUSED))
def test_calls_that_cannot_work_are_refused(random_subject, call):
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, "divprune", budget=9):  # noqa: SIM117
        with pytest.raises(UnsupportedCallError):
            _REFUSED[call](random_subject, inputs)


def test_an_attention_implementation_without_known_masks_is_refused(random_subject):
    random_subject.model.set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedModelError, match="flex_attention"):
        compress(random_subject.model, "divprune")


def test_cropping_into_the_shortened_prompt_is_refused(random_subject):
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, "divprune", budget=9):
        cache = cache_in(random_subject.generate(inputs, return_dict_in_generate=True))
        length = cache.get_seq_length()
        cache.crop(-2)
        assert cache.get_seq_length() == length - 2
        with pytest.raises(UnsupportedCallError, match="cannot crop"):
            cache.crop(-10)


@pytest.mark.rotating(axis="method", by="subject", count=1)
@pytest.mark.parametrize("method", ["divprune", "fastv", "divprune+fastv"])
def test_tokens_are_physically_gone_from_the_cache_of_every_layer(subject, method):
    inputs = subject.batch(subject.prompt(2, 1))
    with compress(subject.model, method, budget="40%") as c:
        cache = cache_in(subject.generate(inputs, return_dict_in_generate=True))
    images = c.report().images
    text = inputs["input_ids"].shape[1] - 2 * subject.placeholders + 5
    for layer, held in enumerate(cache.layers):
        left = text + sum(i.per_layer[layer] + i.separators[layer] for i in images)
        # Layers with a sliding window never store more than it reaches.
        stored = min(left, subject.window - 1) if subject.slides(layer) else left
        assert held.keys.shape[2] == stored
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 5


def test_padding_is_dropped_along_with_the_tokens(random_subject):
    prompts = [random_subject.prompt(1, 3, text=4), random_subject.prompt(2, 4, text=9)]
    inputs = random_subject.batch(*prompts)
    with compress(random_subject.model, "divprune", budget=9), torch.no_grad():
        cache = cache_in(random_subject.model(**inputs, use_cache=True))
    longest = max(len(ids) - 27 * len(pixels) for ids, pixels in prompts)
    assert cache.layers[0].keys.shape[2] == longest


@pytest.mark.parametrize("cache", [True, False])
def test_renumbered_positions_equal_the_reference_that_feeds_short_embeddings(llava, cache):
    ids, pixels = llava.prompt(1, 1)
    inputs = llava.batch((ids, pixels))
    with compress(llava.model, "divprune", budget="25%", positions="renumber") as c:
        out = llava.generate(inputs, use_cache=cache)[:, len(ids) :]
    with compress(llava.model, "divprune", budget="25%"):
        assert not torch.equal(
            llava.model(**inputs).logits, _short_logits(llava, inputs, c.report())
        )
    embeds = _short_embeds(llava, inputs, c.report())
    reference = llava.generate(
        {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2])}
    )
    assert torch.equal(out, reference)


@torch.no_grad()
def _short_embeds(subject: Any, inputs: Any, report: Any) -> torch.Tensor:
    base, ids = subject.model.model, inputs["input_ids"]
    features = subject.features(inputs).flatten(0, 1)
    embeds = base.get_input_embeddings()(ids)
    mask = ids == subject.image_token
    embeds = embeds.masked_scatter(mask[..., None].expand_as(embeds), features)
    keep = ~mask[0]
    keep[mask[0].nonzero()[:, 0][report.images[0].kept]] = True
    return embeds[:, keep]


@torch.no_grad()
def _short_logits(subject: Any, inputs: Any, report: Any) -> torch.Tensor:
    return subject.model(inputs_embeds=_short_embeds(subject, inputs, report)).logits


@pytest.mark.parametrize("method", ["divprune", "fastv", "pyramiddrop", "divprune+fastv"])
def test_renumbered_cached_generation_equals_recomputation_in_a_padded_batch(llava, method):
    inputs = llava.batch(llava.prompt(1, 3, text=4), llava.prompt(2, 4))
    with compress(llava.model, method, budget="55%", positions="renumber"):
        cached = llava.generate(inputs)
        assert torch.equal(cached, llava.generate(inputs, use_cache=False))
        alone = llava.generate(llava.batch(llava.prompt(1, 3, text=4)))
    assert torch.equal(cached[0, -6:], alone[0, -6:])


def test_renumbering_counts_afresh_at_every_stage(random_subject):
    """methods-a 4.6 carried over: positions in each stage are those of its own cache."""
    seen: dict[int, list[list[int]]] = {}
    lm = random_subject.model.model.language_model
    original = lm.rotary_emb.forward
    lm.rotary_emb.forward = lambda x, position_ids: (
        seen.setdefault(len(seen), position_ids.tolist()),
        original(x, position_ids),
    )[1]
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    method = get_method("pyramiddrop", layers=(2, 4), lam=0.5)
    with compress(random_subject.model, method, positions="renumber"):
        random_subject.generate(inputs, max_new_tokens=2)
    lengths = [max(rows[0]) + 1 for rows in seen.values()]
    text = inputs["input_ids"].shape[1] - 36
    prefill = [text + 36, text + 18, text + 9]
    assert lengths == prefill + [n + 1 for n in prefill]


def test_method_order_places_tokens_as_they_were_picked(random_subject):
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, "divprune", budget=9, order="method") as c:
        picked = random_subject.model(**inputs).logits
    report = c.report()
    with compress(random_subject.model, "divprune", budget=9) as c:
        raster = random_subject.model(**inputs).logits
    assert sorted(report.images[0].kept) == c.report().images[0].kept != report.images[0].kept
    assert not torch.allclose(picked, raster, atol=1e-3)


def test_bfloat16_generates_and_shortens(random_subject):
    random_subject.model.to(torch.bfloat16)
    inputs = random_subject.batch(random_subject.prompt(1, 1), random_subject.prompt(2, 2))
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with compress(random_subject.model, "divprune+fastv", budget="25%") as c:
        out = random_subject.generate(inputs, return_dict_in_generate=True)
    assert cache_in(out).layers[0].keys.dtype == torch.bfloat16
    assert all(image.mean == pytest.approx(9, abs=0.5) for image in c.report().images)


def test_report_counts_times_and_prints(subject):
    inputs = subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))
    with compress(subject.model, "divprune+fastv", budget="25%") as c:
        assert isinstance(c, Compression)
        subject.generate(inputs, max_new_tokens=4)
        report = c.report()
    n = subject.tokens_per_image
    assert [(i.index, i.row, i.before) for i in report.images] == [(0, 0, n), (1, 1, n), (2, 1, n)]
    assert report.decode_tokens == 3
    assert all(value > 0 for value in report.milliseconds.values())
    assert set(report.milliseconds) == {"encoder", "selection", "prefill", "decode"}
    assert report.to_dict()["images"][1]["kept"] == report.images[1].kept
    assert f"{n} -> {report.images[0].after} tokens" in str(report)
    assert '"budget": "25%"' in report.to_json()


def test_a_beam_search_reports_each_image_once(random_subject):
    inputs = random_subject.batch(random_subject.prompt(2, 1))
    with compress(random_subject.model, "divprune", budget=9) as c:
        random_subject.generate(inputs, num_beams=3)
    assert len(c.report().images) == 2


def test_renumbering_positions_of_three_axes_is_refused(qwen):
    with pytest.raises(CompositionError, match="three axes"):
        compress(qwen.model, "divprune", budget=9, positions="renumber")


def test_list_models_names_the_family_and_its_class():
    rows = {info.name: info for info in list_models()}
    assert rows["llava"].classes == ("LlavaForConditionalGeneration",)
    assert rows["llava"].images
    assert not rows["llava"].video


def test_positional_arguments_are_understood(random_subject):
    inputs = random_subject.batch(random_subject.prompt(1, 1))
    with compress(random_subject.model, "divprune", budget=9) as c:
        named = random_subject.model(**inputs).logits
        placed = random_subject.model(inputs["input_ids"], inputs["pixel_values"]).logits
        assert torch.equal(named, placed)
        assert len(c.report().images) == 1


@pytest.mark.slow
def test_a_long_lived_model_does_not_collect_times(random_subject):
    with compress(random_subject.model, "divprune", budget=9) as c:
        ids = torch.tensor([[3, 4]])
        for _ in range(1100):
            random_subject.model(input_ids=ids)
        assert len(c._engine.trace._times) <= 1024
        assert c.report().decode_tokens == 1099
        assert c.report().milliseconds["decode"] > 0


@torch.no_grad()
def _step(subject: Any, cache: Any, word: int, mask: torch.Tensor) -> torch.Tensor:
    """Logits of one more word on every row of a cache that is left as it was."""
    ids = torch.full((len(mask), 1), word)
    mask = torch.cat([mask, torch.ones(len(mask), 1)], 1)
    positions = mask.sum(1, keepdim=True).long() - 1
    return subject.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        **cached(subject.model, copy.deepcopy(cache)),
    ).logits[:, -1]


@pytest.mark.parametrize("method", ["divprune", "divprune+fastv"])
def test_rows_of_a_cache_may_be_reordered_selected_and_repeated(random_subject, method):
    prompts = [random_subject.prompt(1, 3, text=4), random_subject.prompt(2, 4)]
    inputs = random_subject.batch(*prompts)
    with compress(random_subject.model, method, budget="55%"), torch.no_grad():
        cache = cache_in(random_subject.model(**inputs, use_cache=True))
        mask = inputs["attention_mask"]
        logits = _step(random_subject, cache, 7, mask)
        assert (logits[0] - logits[1]).abs().max() > 0.01
        for change, rows in [
            (lambda c: c.reorder_cache(torch.tensor([1, 0])), [1, 0]),
            (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
            (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
        ]:
            changed = copy.deepcopy(cache)
            change(changed)
            found = _step(random_subject, changed, 7, mask[rows])
            assert (found - logits[rows]).abs().max() < 1e-5


def test_a_reset_cache_is_an_ordinary_empty_one(random_subject):
    inputs = random_subject.batch(random_subject.prompt(1, 3))
    with compress(random_subject.model, "divprune", budget=9), torch.no_grad():
        cache = cache_in(random_subject.model(**inputs, use_cache=True))
        cache.reset()
        assert type(cache).__name__ == "DynamicCache"
        assert cache.get_seq_length() == 0


@pytest.mark.parametrize("method", ["divprune", "fastv", "divprune+fastv"])
def test_an_image_and_a_clip_in_one_prompt(qwen, method):
    text = [3, 4, 5]
    ids = torch.tensor([text + [99] * 36 + text + [98] * 72 + text])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 99).long() + 2 * (ids == 98),
        "pixel_values": torch.randn(144, 96),
        "image_grid_thw": torch.tensor([[1, 12, 12]]),
        "pixel_values_videos": torch.randn(288, 96),
        "video_grid_thw": torch.tensor([[2, 12, 12]]),
    }
    bare = qwen.generate(inputs)
    with compress(qwen.model, method, budget="100%"):
        assert torch.equal(qwen.generate(inputs), bare)
    with compress(qwen.model, method, budget="40%") as c:
        cached = qwen.generate(inputs)
        assert torch.equal(cached, qwen.generate(inputs, use_cache=False))
    assert [image.grid for image in c.report().images] == [(1, 6, 6), (2, 6, 6)]
    for image in c.report().images:  # whole tokens in whole layers: half a token off at most
        assert image.mean == pytest.approx(round(0.4 * image.before), abs=0.5)


def test_features_encoded_before_compress_are_found_by_the_grid_of_the_call(qwen):
    inputs = qwen.batch(qwen.prompt(1, 1))
    given = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad(), compress(qwen.model, "divprune", budget=9):
        wanted = qwen.model(**inputs).logits
    with torch.no_grad():
        output = qwen.model.model.get_image_features(**given, return_dict=True)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with torch.no_grad(), compress(qwen.model, "divprune", budget=9):
        found = qwen.model(**rest, mm_encoder_outputs={"image": output}).logits
        assert torch.equal(found, wanted)
        del rest["image_grid_thw"]
        with pytest.raises(UnsupportedCallError, match="image_grid_thw"):
            qwen.model(**rest, mm_encoder_outputs={"image": output})


def test_a_new_call_knows_nothing_of_one_that_was_cut_off_anywhere():
    now = CallState()
    plain = {name: was for name, was in vars(CallState).items() if not callable(was)}
    fields = {name: was for name, was in plain.items() if name[0] != "_" and name != "trace"}
    assert "rehearsing" in fields
    for name in fields:
        setattr(now, name, "of the other")
    now.encoded = now.noted = {"image": "of the other"}  # type: ignore[dict-item]
    now.clear()
    assert {name: getattr(now, name) for name in fields} == fields
    assert now.encoded == now.noted == {}
