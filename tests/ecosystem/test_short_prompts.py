"""Prompts that are shortened before `generate`, which then runs on a model without any hook."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from at_once import at_once
from PIL import Image

import vlmcompress
from vlmcompress.errors import CompositionError, UnsupportedCallError, VLMCompressError
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.media.video import read_video
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.models.names import ASSETS
from vlmcompress.prompts import prepare

SAMPLES = ASSETS / "samples"


def new(case: Any, **options: Any) -> torch.Tensor:
    """Six new tokens of the compressed model."""
    with case.compress("divprune"):
        return case.ids(**options)[:, case.inputs["input_ids"].shape[1] :]


def short_of(case: Any, **options: Any) -> Any:
    return vlmcompress.shorten(case.model, case.inputs, "divprune", "25%", **options)


def answer(case: Any, short: Any, **options: Any) -> torch.Tensor:
    asked = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    return case.model.generate(**short, **asked)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"use_cache": False},
    ],
    ids=lambda o: ",".join(o) or "greedy",
)
def test_generate_gives_what_the_compressed_model_gives(case, options):
    bare, _ = case.wanted("divprune")
    short = short_of(case)
    torch.manual_seed(3)
    wanted = new(case, **{k: v for k, v in options.items() if k != "cache_implementation"})
    torch.manual_seed(3)
    found = answer(case, short, **options)
    assert torch.equal(found, wanted)
    assert not torch.equal(found[:1], bare[:, case.inputs["input_ids"].shape[1] :])


def test_a_static_cache_in_compress_names_the_way(small):
    with (
        small.compress("divprune"),
        pytest.raises(UnsupportedCallError, match=r"vlmcompress\.shorten"),
    ):
        small.ids(cache_implementation="static")


@torch.no_grad()
def test_a_forward_gives_the_same_logits(small):
    with small.compress("divprune"):
        wanted = small.logits()
    found = small.model(**short_of(small)).logits[:, -1]
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not torch.allclose(found, small.logits(), atol=1e-3)


def test_prompts_of_several_lengths_wait_for_their_turn(tiny_qwen):
    """Qwen keeps what belongs to the last prompt on the model."""
    model, processor = tiny_qwen
    clip = read_video(SAMPLES / "runway.mp4", frames=8)
    media = [Image.open(SAMPLES / "street.png").convert("RGB"), clip]
    prompts = [prepare(model, processor, [([one], "what is there ?")]) for one in media]
    shorts = [vlmcompress.shorten(model, one, "divprune", "25%") for one in prompts]
    for inputs, short in zip(prompts, shorts, strict=True):
        with vlmcompress.compress(model, "divprune", "25%"):
            wanted = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)
        found = model.generate(**short, max_new_tokens=5, min_new_tokens=5)
        assert torch.equal(found, wanted[:, inputs["input_ids"].shape[1] :])


def test_what_is_left_has_its_old_positions_or_new_ones(small):
    kept, renumbered = short_of(small), short_of(small, positions="renumber")
    length = kept["inputs_embeds"].shape[1]
    assert renumbered["position_ids"].tolist() == [list(range(length))]
    assert int(kept["position_ids"].max()) == small.inputs["input_ids"].shape[1] - 1
    assert list(kept) == ["inputs_embeds", "attention_mask", "position_ids"]
    assert f"[1, {length}, " in repr(kept)
    with vlmcompress.compress(small.model, "divprune", "25%", positions="renumber"):
        wanted = small.ids()[:, small.inputs["input_ids"].shape[1] :]
    assert torch.equal(answer(small, renumbered), wanted)


def test_mergers_and_costs(small):
    with vlmcompress.compress(small.model, "pool", "25%"):
        wanted = small.ids()[:, small.inputs["input_ids"].shape[1] :]
    pooled = vlmcompress.shorten(small.model, small.inputs, "pool", "25%")
    assert torch.equal(answer(small, pooled), wanted)
    cheap = vlmcompress.shorten(small.model, small.inputs, "divprune", "0.8 flops")
    assert cheap.report.predicted == pytest.approx(0.8, abs=0.1)
    assert cheap.report.measured is None, "nothing ran to be measured"


def test_text_alone_is_embedded(small):
    text = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    short = vlmcompress.shorten(small.model, text, "divprune", "25%")
    assert not short.report.images
    wanted = small.model.generate(**text, max_new_tokens=3, do_sample=False)[:, 3:]
    found = small.model.generate(**short, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("fastv(k=1)", UnsupportedCallError, "fastv goes on inside the decoder"),
        ("divprune+fastv(k=1)", UnsupportedCallError, "goes on inside the decoder"),
        ("inject(layer=1)", UnsupportedCallError, "goes on inside the decoder"),
        ("restore(divprune)", UnsupportedCallError, "goes on inside the decoder"),
        ("nothing", VLMCompressError, "unknown method"),
    ],
)
def test_what_cannot_be_said_before_is_refused(small, method, kind, message):
    alone = snapshot(small.model)
    with pytest.raises(kind, match=message):
        vlmcompress.shorten(small.model, small.inputs, method, "50%")
    assert snapshot(small.model) == alone


def test_bad_calls_leave_the_model_as_it_was(small):
    bare, alone = small.ids(), snapshot(small.model)
    for given, message in (
        (small.inputs["input_ids"], "a mapping with input_ids, got Tensor"),
        ({"pixel_values": small.inputs["pixel_values"]}, "a mapping with input_ids, got dict"),
        ({**small.inputs, "labels": small.inputs["input_ids"]}, "labels"),
        ({**small.inputs, "pixel_values": torch.full((1, 3, 16, 16), torch.nan)}, "finite"),
    ):
        with pytest.raises(VLMCompressError, match=message):
            vlmcompress.shorten(small.model, given, "divprune", "25%")
        assert snapshot(small.model) == alone
    with small.compress("divprune"), pytest.raises(CompositionError, match="compressed already"):
        short_of(small)
    with pytest.raises(VLMCompressError):
        vlmcompress.shorten("a model", small.inputs, "divprune", "25%")
    assert torch.equal(small.ids(), bare)


@pytest.mark.parametrize("way", ["model", "decoder", "forward", "layers"])
def test_a_compiled_model_stays_compiled(small, way):
    wanted, graphs = new(small), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    decoder = small.model.model.language_model
    if way == "forward":
        small.model.forward = torch.compile(small.model.forward, backend=backend)
    else:
        parts = {"model": [small.model], "decoder": [decoder], "layers": decoder.layers}
        for part in parts[way]:
            part.compile(backend=backend)
    compiled = [dict(vars(module)) for module in small.model.modules()]
    short = short_of(small)
    assert not graphs, "what runs is what was written"
    after = [dict(vars(module)) for module in small.model.modules()]
    names = ("_compiled_call_impl", "forward")
    for before, now in zip(compiled, after, strict=True):
        assert all(before.get(name) is now.get(name) for name in names)
    assert torch.equal(answer(small, short), wanted)
    assert graphs
    torch._dynamo.reset()


def test_another_thread_has_the_bare_model_meanwhile(small):
    bare, found = small.ids(), []

    class Meanwhile(DivPrune):
        """Waits in the middle of the selection until another thread has answered."""

        def selecting(self, tokens: Any, count: int) -> Any:
            if not found:
                found.append(None)
                found[:] = at_once(small.ids)
            return (yield from super().selecting(tokens, count))

    short = vlmcompress.shorten(small.model, small.inputs, Meanwhile(), "25%")
    assert len(found) == 1
    assert torch.equal(found[0], bare)
    wanted = new(small)
    assert torch.equal(answer(small, short), wanted)
    assert not torch.equal(bare[:, -wanted.shape[1] :], wanted)


def test_threads_that_shorten_take_turns(small):
    other = copy.deepcopy(small)
    wanted = new(other)
    shorts = at_once(*[lambda: short_of(small)] * 4)
    assert all(torch.equal(answer(small, short), wanted) for short in shorts)
