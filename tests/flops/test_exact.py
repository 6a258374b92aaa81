"""What `first_token` and `decode_step` count, by hand; tests/patches/test_costs.py has models."""

from dataclasses import replace

import pytest
import torch
from kv_cache import cache_in
from transformers import Gemma3TextConfig, MistralConfig, MistralForCausalLM, Qwen2Config

from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.exact import LayerShape, Load, ModelShape, decode_step, first_token
from vlmcompress.flops.paper_conventions import DecoderShape, kv_bytes

FULL = LayerShape(weights=100, width=8, cached=6)
SLIDING = replace(FULL, window=3)
VIT = LayerShape(weights=50, width=4)
SHAPE = ModelShape(
    embedding=7, encoder=(VIT, VIT), projector=11, decoder=(FULL, SLIDING), lm_head=13
)
LOAD = Load(encoder=((5, 4), (5, 5)), projected=6, rows=((4, 2), (9, 5)), selection=17.0)


@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("tokens", [0, 1, 4, 7])
def test_pairs_are_what_the_mask_allows(window, tokens):
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    allowed = (key <= query) & (query - key < (window or tokens + 1))
    layer = replace(FULL, window=window)
    assert layer.pairs(tokens) == allowed.sum()
    assert layer.pairs(tokens, causal=False) == tokens**2


def test_a_first_token_by_hand():
    costs = first_token(SHAPE, LOAD)
    vit = [50 * n + 2 * 4 * n * n for n in (5, 4, 5, 5)]
    assert costs.encoder == 2 * (sum(vit) + 7 * 10)
    assert costs.projector == 2 * 11 * 6
    assert costs.selection == 17
    # Pairs: 4 * 5 / 2 and 9 * 10 / 2; with a window of 3 tokens 1 + 2 and 1 + 2 + 3 + 3 + 3.
    assert costs.prefill == (2 * (100 * 13 + 16 * 55), 2 * (100 * 7 + 16 * (3 + 12)))
    assert costs.lm_head == 2 * 13 * 2
    assert costs.kv_bytes == 2 * 6 * (4 + 9 + 2 + 2)
    parts = costs.encoder + costs.projector + costs.lm_head + 17
    assert costs.total == parts + sum(costs.prefill)
    everything = first_token(SHAPE, LOAD, causal=False)
    assert everything.prefill == (2 * (100 * 13 + 16 * 97), 2 * (100 * 7 + 16 * 29))
    assert replace(everything, prefill=costs.prefill) == costs


def test_patches_pairs_and_a_pooling_head_by_hand():
    costs = first_token(SHAPE, LOAD)
    windows = replace(LOAD, patches=20, pairs=((1, 2), (3, 4)))
    pairs = 25 + 16 + 25 + 25 - 10
    assert first_token(SHAPE, windows).encoder == costs.encoder + 2 * 7 * 10 - 2 * 8 * pairs
    pooled = first_token(replace(SHAPE, pooler=(19, 23)), LOAD)
    assert pooled.encoder == costs.encoder + 2 * (19 * 10 + 23 * 2)
    more = first_token(replace(SHAPE, pooler=(19, 23)), replace(LOAD, patches=20))
    assert more.encoder == pooled.encoder + 2 * (7 + 19) * 10
    assert first_token(replace(SHAPE, value_bytes=4), LOAD).kv_bytes == 2 * costs.kv_bytes


def test_a_call_without_pictures_and_a_padded_batch():
    text = Load(encoder=(), projected=0, rows=((4, 2),))
    costs = first_token(SHAPE, text)
    assert (costs.encoder, costs.projector, costs.kv_bytes) == (0, 0, 2 * 6 * 6)
    assert LOAD.padded.rows == ((9, 5), (9, 5))
    assert Load((), 0, ((4, 7), (9, 5))).padded.rows == ((9, 7), (9, 7))
    assert replace(LOAD.padded, rows=LOAD.rows) == LOAD


def test_what_the_decoder_makes_before_its_layers_is_made_of_late_tokens_too():
    late, whole = replace(LOAD, rows=((1, 4), (0, 9))), replace(LOAD, rows=((4, 4), (9, 9)))
    assert first_token(replace(SHAPE, entry=3), late).entry == 2 * 3 * 13
    assert first_token(replace(SHAPE, entry=3), whole).entry == 2 * 3 * 13
    assert sum(first_token(SHAPE, late).prefill) < sum(first_token(SHAPE, whole).prefill)


def test_a_further_token_by_hand():
    # It meets itself, too: 5 keys and, of 3 that are seen, 3; then 10 and 2.
    step = decode_step(SHAPE, [[4, 9], [9, 1]])
    assert step == 2 * (4 * 100 + 2 * 8 * (5 + 3 + 10 + 2)) + 2 * 13 * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: first_token(SHAPE, replace(LOAD, encoder=((5,),))), "2 ViT layers .* got 1"),
        (lambda: first_token(SHAPE, replace(LOAD, pairs=((5,),))), "2 ViT layers .* got 1"),
        (lambda: first_token(SHAPE, replace(LOAD, pairs=((5, 5),))), "2 images but pairs of 1"),
        (lambda: first_token(SHAPE, replace(LOAD, rows=((5, 5, 5),))), "2 decoder .* got 3"),
        (lambda: first_token(SHAPE, replace(LOAD, rows=((5, -1),))), "0 or more, got -1"),
        (lambda: first_token(SHAPE, replace(LOAD, projected=-2)), "got -2"),
        (lambda: first_token(SHAPE, replace(LOAD, patches=-3)), "got -3"),
        (lambda: first_token(SHAPE, replace(LOAD, selection=float("nan"))), "got nan"),
        (lambda: decode_step(SHAPE, [[1]]), "2 decoder layers .* got 1"),
        (lambda: decode_step(SHAPE, [[1, -1]]), "got -1"),
        (lambda: DecoderShape(4, 6, 2, 2, 1, 2, 10, (3,)), "2 layers but windows of 1"),
    ],
)
def test_mistakes_are_told_in_one_line(call, words):
    with pytest.raises(VLMCompressError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_windows_are_read_from_the_configuration():
    kinds = ["sliding_attention", "full_attention"] * 2
    gemma = Gemma3TextConfig(num_hidden_layers=4, layer_types=kinds, sliding_window=512)
    assert DecoderShape.of(gemma).windows == (512, None, 512, None)
    assert DecoderShape.of(MistralConfig(num_hidden_layers=3)).windows == (4096,) * 3
    assert DecoderShape.of(MistralConfig(sliding_window=None)).windows == ()
    assert DecoderShape.of(Qwen2Config(sliding_window=512)).windows == ()


@pytest.mark.parametrize("tokens", [3, 4, 5, 9])
def test_a_sliding_cache_holds_what_is_counted(tokens):
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        sliding_window=5,
    )
    model, shape = MistralForCausalLM(config).eval(), DecoderShape.of(config)
    with torch.no_grad():
        cache = cache_in(model(torch.arange(tokens)[None]))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes(shape, [tokens - 2] * 2, 2, bytes_per_value=4) == held
    assert (kv_bytes(replace(shape, windows=()), [tokens] * 2, 0, 4) == held) is (tokens < 5)
