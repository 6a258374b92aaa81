"""Forwards on a shortened cache: the short way gives what the long way gives, and is taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kv_cache import cache_in, cached
from oracle import TOLERANCE

from vlmcompress.api import compress
from vlmcompress.patches.decoder import continuation as forwards
from vlmcompress.patches.engine import engine_of
from vlmcompress.patches.sequence.cache_state import WHOLE
from vlmcompress.patches.sequence.stage_layout import StageLayout

METHODS = {"divprune": "50%", "fastv": "60%", "divprune+fastv": "60%"}


@pytest.fixture
def layouts(monkeypatch):
    """Every layout of stages that a test makes, each for one forward."""
    made: list[StageLayout] = []

    def noting(*args: Any) -> StageLayout:
        made.append(real(*args))
        return made[-1]

    real = forwards.lay_out
    monkeypatch.setattr(forwards, "lay_out", noting)
    return made


def steps(subject, cache, mask=None, count=3):
    """Logits of some single tokens after a prefill, with the cache as a plain loop would use it."""
    found = []
    for token in range(5, 5 + count):
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        ids = torch.full((cache.layers[0].keys.shape[0], 1), token)
        out = subject.model(input_ids=ids, attention_mask=mask, **cached(subject.model, cache))
        found.append(out.logits[:, -1])
    return torch.stack(found)


def prefilled(subject, inputs):
    return cache_in(subject.model(**inputs, use_cache=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_short_way_of_a_step_gives_what_the_long_way_gives(
    random_subject, method, attention, monkeypatch, layouts
):
    subject = random_subject
    subject.model.set_attn_implementation(attention)
    inputs = subject.batch(subject.prompt(1, 1))
    with compress(subject.model, method, METHODS[method]):
        cache = prefilled(subject, inputs)
        short = steps(subject, cache)
        taken = len(layouts)
        monkeypatch.setattr(forwards, "_passes", lambda *_: False)
        again = steps(subject, prefilled(subject, inputs))
    assert torch.equal(short, again)
    # Eager attention adds a mask, which every stage needs cut to its own keys.
    assert taken == (3 if attention == "eager" and "fastv" in method else 0)
    assert len(layouts) == taken + 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_several_words_take_the_short_way_where_all_layers_hold_the_same(
    random_subject, method, attention, monkeypatch, layouts
):
    subject = random_subject
    subject.model.set_attn_implementation(attention)
    inputs, words = subject.batch(subject.prompt(1, 1)), torch.tensor([[5, 6, 7, 8]])

    def answer():
        cache = prefilled(subject, inputs)
        return subject.model(input_ids=words, **cached(subject.model, cache)).logits

    with compress(subject.model, method, METHODS[method]):
        short = answer()
        taken = len(layouts)
        monkeypatch.setattr(forwards, "_passes", lambda *_: False)
        assert torch.equal(answer(), short)
    assert (taken, len(layouts)) == ((1, 2) if "fastv" in method else (0, 1))


def test_flash_attention_reads_gaps_in_positions_so_several_words_take_the_long_way():
    kinds = {"masks_made_here": False, "eager": False, "flash": True}
    engine = SimpleNamespace(kinds=SimpleNamespace(**kinds), positions="keep")
    state = SimpleNamespace(padded=False, stages={WHOLE: None}, bias=None)
    assert not forwards._passes(engine, state, 4)
    assert forwards._passes(engine, state, 1)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_generate_takes_the_short_way_with_its_mask_of_ones(random_subject, method, layouts):
    subject = random_subject
    inputs = subject.batch(subject.prompt(1, 1))
    assert bool(inputs["attention_mask"].all())
    with compress(subject.model, method, METHODS[method]):
        subject.generate(inputs)
    assert layouts == []


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_mask_that_closes_something_is_heeded(random_subject, method, layouts):
    subject = random_subject
    inputs = subject.batch(subject.prompt(1, 1))
    mask = inputs["attention_mask"].clone()
    with compress(subject.model, method, METHODS[method]):
        opened = steps(subject, prefilled(subject, inputs), mask)
        mask[0, -1] = 0  # the last word of the prompt, from now on
        closed = steps(subject, prefilled(subject, inputs), mask)
        # A loop of the caller's own may close what it likes, also inside of generate.
        inside = subject.model.generate(
            **inputs, custom_generate=_closing_loop(subject, mask), do_sample=False
        )
    assert len(layouts) >= 6
    assert not torch.allclose(opened, closed, atol=1e-3)
    assert torch.equal(inside, closed)


def _closing_loop(subject, mask):
    def loop(model, input_ids, **kwargs):
        images = {k: v for k, v in kwargs.items() if k in ("mm_encoder_outputs", "pixel_values")}
        ones = torch.ones_like(input_ids)
        out = model(input_ids=input_ids, attention_mask=ones, use_cache=True, **images)
        cache = cache_in(out)
        return steps(subject, cache, mask)

    return loop


def _padded(subject):
    return subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))


def _ragged(subject):
    """Rows of one length, of which more is dropped in one than in the other."""
    words = 6 + len(subject.image()) + 2
    return subject.batch(subject.prompt(1, 1, text=words), subject.prompt(2, 2))


@pytest.mark.parametrize("rows", [_padded, _ragged])
@torch.no_grad()
def test_rows_of_different_lengths_take_the_long_way(random_subject, rows, layouts):
    subject = random_subject
    with compress(subject.model, "divprune", "50%"):
        subject.generate(rows(subject))
    assert layouts


@torch.no_grad()
def test_every_generate_looks_at_its_own_mask(random_subject):
    subject = random_subject
    with compress(subject.model, "divprune", "50%"):
        wanted = subject.generate(_padded(subject))
    with compress(subject.model, "divprune", "50%"):
        subject.generate(subject.batch(subject.prompt(1, 1)))
        assert torch.equal(subject.generate(_padded(subject)), wanted)


@torch.no_grad()
def test_layers_are_hooked_once_a_forward_needs_it(random_subject):
    subject = random_subject
    inputs, layers = subject.batch(subject.prompt(1, 1)), subject.lm.layers
    with compress(subject.model, "fastv", "60%"):
        assert all(layer._forward_pre_hooks for layer in layers)
        cache = prefilled(subject, inputs)
        wanted = steps(subject, cache)
        cache.crop(-3)
    with compress(subject.model, "divprune", "50%"):
        subject.generate(inputs)
        assert not any(layer._forward_pre_hooks for layer in layers)
        subject.model.set_attn_implementation("eager")
        # The cache of a decoder-stage method has layers of different lengths.
        assert (steps(subject, cache) - wanted).abs().max() < TOLERANCE
        assert all(layer._forward_pre_hooks for layer in layers)
    assert not any(layer._forward_pre_hooks for layer in layers)
    assert engine_of(subject.model) is None
