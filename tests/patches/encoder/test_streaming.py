"""Clips encoded in chunks: what a method is shown and chooses is what it would be of the whole."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from bare import last_logits
from built_subjects import subject_of
from upstream_methods import Bright, Huddle, Shrink

from vlmcompress.api import compress
from vlmcompress.errors import BudgetError, CompositionError, UnsupportedModelError
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.methods import get_method
from vlmcompress.methods.unit_drop import UnitDrop
from vlmcompress.patches.encoder.live_memory import LiveMemory
from vlmcompress.patches.encoder.streaming import Streaming

CLIPS = [
    "random llava-next-video with clips",
    "random llava-onevision with clips",
    "random video-llava with clips",
    "random qwen2-vl with clips",
    "random qwen2.5-vl with clips",
    "random qwen3-vl with clips",
    "tiny-qwen with clips",
    "random internvl",
]
KINDS = [
    "random llava-next-video with clips",
    "random llava-onevision with clips",
    "random video-llava with clips",
    "random qwen2.5-vl with clips",
    "random qwen3-vl with clips",
    "random internvl",
]
"""One for each way in which frames lie in what the encoder is given and gives."""
ROUNDING = 1e-5
"""Kernels of other batch sizes add up in another order."""
SIGNALS = [
    "visionzip",
    "hiprune",
    "vispruner",
    "zoo-prune",
    "fastvid",
    "vidcom2",
    "evs",
    "sparsevlm",
]


def need_of(subject: Any, inputs: Any, *methods: Any) -> str:
    """What encoding one frame takes, as the refusal says."""
    with (
        compress(subject.model, *methods, max_memory=1),
        pytest.raises(BudgetError, match=r"encoding one frame takes [\d.]+ \w+: give") as refused,
    ):
        last_logits(subject, inputs)
    return re.search(r"takes ([\d.]+ \w+):", str(refused.value))[1]


def chunks(report: Any) -> int:
    (note,) = (note for note in report.notes if "max_memory" in note)
    return int(re.search(r"in (\d+) chunk", note)[1])


@pytest.mark.rotating(axis="limit", by="name", count=1, name=KINDS)
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("limit", ["one frame", "1GB"])
def test_a_clip_in_chunks_is_the_clip_and_removing_leaves_nothing(name, limit):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1, text=4), subject.prompt(1, 2, text=9))
    last_logits(subject, inputs)  # after which transformers' own hooks are there
    untouched = snapshot(subject.model)
    with compress(subject.model, "divprune", "40%") as c:
        whole, kept = last_logits(subject, inputs), [i.kept for i in c.report().images]
        assert not c.report().notes
    limit = need_of(subject, inputs, "divprune", "40%") if limit == "one frame" else limit
    assert snapshot(subject.model) == untouched
    with compress(subject.model, "divprune", "40%", max_memory=limit) as c:
        found, report = last_logits(subject, inputs), c.report()
        again = last_logits(subject, inputs)
    assert snapshot(subject.model) == untouched
    assert [i.kept for i in report.images] == kept
    assert (found - whole).abs().max() < ROUNDING
    assert (again - whole).abs().max() < ROUNDING
    assert chunks(report) >= 2
    other = subject.batch(subject.prompt(2, 3, text=4), subject.prompt(1, 4, text=9))
    with compress(subject.model, "divprune", "40%", max_memory=limit):
        assert (last_logits(subject, other) - whole).abs().max() > 100 * ROUNDING


def tensors(output: Any) -> list[Any]:
    """Features of each clip, and those of each layer of DeepStack."""
    layers = getattr(output, "deepstack_features", None) or []
    return [*output.pooler_output, *(piece for layer in layers for piece in layer)]


@pytest.mark.pairs(name=KINDS)
@pytest.mark.parametrize("name", CLIPS)
def test_features_of_chunks_are_those_of_the_call(name):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1))
    with torch.no_grad():
        bare = subject.encode(inputs)
    with torch.no_grad(), compress(subject.model, "random", "50%", max_memory="1GB"):
        found = subject.encode(inputs)
    assert type(found) is type(bare)
    assert type(found.pooler_output) is type(bare.pooler_output)
    for one, other in zip(tensors(found), tensors(bare), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < ROUNDING
        assert (one - other.flip(0)).abs().max() > 100 * ROUNDING


@pytest.mark.rotating(axis="method", by="name", count=2, name=KINDS)
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("method", SIGNALS)
def test_signals_of_chunks_are_those_of_the_clip(name, method):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1, text=9))
    try:
        with compress(subject.model, method, "40%") as c:
            whole, kept = last_logits(subject, inputs), [i.kept for i in c.report().images]
    except UnsupportedModelError:
        pytest.skip("the model does not give its signals")
    with compress(subject.model, method, "40%", max_memory="1GB") as c:
        found, report = last_logits(subject, inputs), c.report()
    assert chunks(report) >= 2
    assert [i.kept for i in report.images] == kept
    assert (found - whole).abs().max() < ROUNDING


@pytest.mark.pairs(name=["random video-llava with clips", "random qwen2.5-vl with clips"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("random video-llava with clips", Huddle()),
        ("random qwen2.5-vl with clips", Shrink()),
        ("random qwen3-vl with clips", Shrink()),
    ],
)
def test_methods_before_the_projector_that_take_frames_apart_work_in_chunks(name, method):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1, text=9))
    with compress(subject.model, method, "40%") as c:
        whole, kept = last_logits(subject, inputs), [i.kept for i in c.report().images]
    with compress(subject.model, method, "40%", max_memory="1GB") as c:
        found, report = last_logits(subject, inputs), c.report()
    assert report.engaged
    assert [i.kept for i in report.images] == kept
    assert (found - whole).abs().max() < ROUNDING


@pytest.mark.pairs(name=KINDS[1::2])
@pytest.mark.parametrize("name", CLIPS)
def test_the_encoder_takes_no_more_than_it_may(name, monkeypatch):
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1))
    need = need_of(subject, inputs, "random", "50%")
    taken = []
    enter, leave = LiveMemory.__enter__, LiveMemory.__exit__
    monkeypatch.setattr(
        LiveMemory, "__exit__", lambda own, *error: (taken.append(own.peak), leave(own, *error))[1]
    )
    assert enter is LiveMemory.__enter__
    with torch.no_grad(), LiveMemory() as whole:
        subject.encode(inputs)
    taken.clear()
    with torch.no_grad(), compress(subject.model, "random", "50%", max_memory=need):
        subject.encode(inputs)
    assert taken
    number, unit = need.split()
    bound = float(number) * {"KB": 1000, "MB": 1000**2}[unit]
    assert max(taken) <= bound < whole.peak


@pytest.mark.pairs(name=KINDS[::2])
@pytest.mark.parametrize("name", CLIPS)
def test_a_chunk_leaves_features_and_signals_but_no_activations(name, monkeypatch):
    """A number for each patch and layer, which is little beside the features; activations are not,
    and the memory of those of all chunks would grow with the clip."""
    subject = subject_of(name)
    inputs = subject.batch(subject.prompt(2, 1))
    run = Streaming._chunk

    def left(method):
        """Bytes that are held when another chunk begins."""
        memory, held = LiveMemory(), []

        def chunk(own, *given):
            held.append(memory.now)
            return run(own, *given)

        monkeypatch.setattr(Streaming, "_chunk", chunk)
        reduced = compress(subject.model, method, "40%", max_memory="1GB")
        with memory, torch.no_grad(), reduced:
            subject.encode(inputs)
        assert held[0] == 0
        return held[1:]

    features, both = left("random"), left("hiprune")
    assert len(features) == len(both) >= 1
    for one, other in zip(features, both, strict=True):
        assert one < other < 2 * one


def test_memory_is_counted_by_hand():
    weight = torch.ones(100, 100)
    with LiveMemory() as memory:
        made = torch.ones(100, 100) @ weight.T  # two of 40000 bytes at once
        view = made[:10]
        assert memory.peak == 80_000
        assert memory.now == 40_000
        del made
        assert memory.now == 40_000
        del view
        assert memory.now == 0
        torch.ones(5)
    assert memory.peak == 80_000


def test_what_cannot_be_cut_is_refused_in_one_line():
    llava = subject_of("random llava")
    with pytest.raises(UnsupportedModelError, match="frames of llava models are not known"):
        compress(llava.model, "divprune", "50%", max_memory="1GB")
    qwen = subject_of("random qwen2.5-vl with clips")
    for method in (Bright(), UnitDrop(layer=1)):
        with pytest.raises(CompositionError, match="max_memory encodes it in pieces"):
            compress(qwen.model, method, "50%", max_memory="1GB")
    for given in ("much", "2 G", "-1GB", 0, True, 1.5, "0.1B"):
        with pytest.raises(BudgetError, match="give bytes, or a text such as '2GB'"):
            compress(qwen.model, "divprune", "50%", max_memory=given)
    assert get_method("divprune")
    compress(qwen.model, "divprune", "50%").remove()
