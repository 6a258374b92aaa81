"""Shapes, formulas and KV bytes, against what models and their caches really do.

The figures of the papers are in test_flops_selection.py and test_flops_merging.py.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from figures import QWEN2_7B, VICUNA, VICUNA_13B
from kv_cache import cache_in
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2VLConfig,
    Qwen3VLMoeTextConfig,
    Qwen3VLTextConfig,
)

from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.paper_conventions import (
    CONVENTIONS,
    DecoderShape,
    EncoderShape,
    encoder_macs,
    kv_bytes,
    matrix_macs,
    prefill_flops,
)

SMALL = DecoderShape(
    hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2, vocabulary=10
)
QWEN2_VL_2B = Qwen2VLConfig(
    text_config={
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    }
)


@pytest.mark.parametrize(
    ("shape", "kib"),
    [
        pytest.param(VICUNA, 512, id="Vicuna-7B"),
        pytest.param(VICUNA_13B, 800, id="Vicuna-13B"),
        pytest.param(QWEN2_7B, 56, id="Qwen2.5-VL-7B"),
        pytest.param(DecoderShape.of(QWEN2_VL_2B), 28, id="Qwen2-VL-2B, from the whole model's"),
    ],
)
def test_kib_that_a_token_takes(shape, kib):
    assert kv_bytes(shape, [1] * shape.layers) == kib * 1024


def test_a_shape_is_read_from_the_configuration():
    assert DecoderShape(3584, 18944, 28, 28, 4, 128, 152064) == QWEN2_7B
    own = Qwen3VLTextConfig(hidden_size=64, num_attention_heads=4, head_dim=32)
    assert DecoderShape.of(own).head_dim == 32
    old = SimpleNamespace(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=50,
    )
    assert DecoderShape.of(old) == DecoderShape(64, 96, 3, 4, 4, 16, 50)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SimpleNamespace(), "SimpleNamespace is no text configuration: no hidden_size, inter"),
        (SimpleNamespace(text_config=SimpleNamespace(hidden_size=1)), "no intermediate_size, num"),
        (Qwen3VLMoeTextConfig(), "60 experts: only decoders"),
    ],
    ids=["nothing", "a part of it", "experts"],
)
def test_a_configuration_that_cannot_be_counted(config, words):
    with pytest.raises(VLMCompressError, match=words) as raised:
        DecoderShape.of(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kv_heads", [4, 1], ids=["full heads", "grouped heads"])
def test_formulas_count_what_torch_counts(kv_heads):
    """torch's counter sees products only, 2 FLOPs per multiply-add."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=50,
        attn_implementation="eager",
    )
    model, n = LlamaForCausalLM(config).eval(), 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cache = cache_in(model(torch.arange(n)[None]))
    counts = counter.get_flop_counts()
    layers = [counts[f"LlamaForCausalLM.model.layers.{layer}"] for layer in range(3)]
    weights = sum(layer[torch.ops.aten.mm] for layer in layers)
    attention = sum(layer[torch.ops.aten.bmm] for layer in layers)
    shape, head = DecoderShape.of(config), counts["LlamaForCausalLM.lm_head"][torch.ops.aten.mm]

    assert prefill_flops(shape, [4] * 3, 3, "calflops") == weights + head
    viewer = prefill_flops(shape, [4] * 3, 3, "llm-viewer")
    extras = 3 * (5 * 4 * n * n + 17 * 32 * n) + 32 * 50
    assert viewer == weights + attention + extras
    c3 = prefill_flops(shape, [4] * 3, 3, "c3")
    assert (2 * c3 == weights + attention) is (kv_heads == 4)
    assert c3 - prefill_flops(shape, [4] * 3, 3, "c2") == 3 * n * 32 * 80
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes(shape, [4] * 3, 3, bytes_per_value=4) == held


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        # 3 tokens in the first layer, 2 in the second: d = 4, m = 6; n = 5 summed, n^2 = 13.
        ("c2", 4 * 5 * 16 + 2 * 13 * 4 + 2 * 5 * 24),
        ("c3", 4 * 5 * 16 + 2 * 13 * 4 + 3 * 5 * 24),
        ("fastv", (4 * 5 * 16 + 2 * 13 * 4 + 2 * 5 * 24) / 2),
        # Queries and output 4x4, keys and values 4x2; the head for the 2 tokens at the end.
        ("calflops", 2 * (5 * (2 * 16 + 2 * 8 + 3 * 24) + 2 * 4 * 10)),
        (
            "llm-viewer",
            2 * 5 * (2 * 16 + 2 * 8 + 3 * 24) + 4 * 13 * 2 * 2 + 5 * 2 * 13 + 17 * 4 * 5 + 4 * 10,
        ),
    ],
)
def test_every_convention_on_a_decoder_of_two_layers_by_hand(convention, expected):
    assert prefill_flops(SMALL, [2, 1], 1, convention) == expected


def test_all_conventions_have_an_example():
    (mark,) = test_every_convention_on_a_decoder_of_two_layers_by_hand.pytestmark
    assert [name for name, _ in mark.args[1]] == list(CONVENTIONS)


def test_c3_is_the_default_and_text_may_come_with_the_counts():
    assert prefill_flops(SMALL, [3, 2]) == prefill_flops(SMALL, [2, 1], 1, "c3")
    assert kv_bytes(SMALL, [3, 2]) == kv_bytes(SMALL, [2, 1], 1) == 5 * 2 * 2 * 2


def test_encoders_by_hand():
    shape = EncoderShape(hidden=4, intermediate=6, layers=2)
    assert encoder_macs(shape, [3, 2]) == 4 * 5 * 16 + 2 * 13 * 4 + 2 * 5 * 24
    # The first layer merges 3 into 2, the second 2 into 1.
    entering = 2 * 5 * 16 + 13 * 4
    leaving = 2 * 3 * 16 + 5 * 4 + 2 * 3 * 24
    assert encoder_macs(shape, [3, 2], [2, 1]) == entering + leaving
    assert matrix_macs([3, 4, 5], 2) == 2 * (12 + 20)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(lambda: prefill_flops(SMALL, [1]), "2 layers .* got 1", id="too few layers"),
        pytest.param(lambda: prefill_flops(SMALL, [1] * 3), "2 layers .* got 3", id="too many"),
        pytest.param(lambda: prefill_flops(SMALL, [1, -1]), "0 or more, got -1", id="negative"),
        pytest.param(lambda: prefill_flops(SMALL, [3, 3], -2), "got -2", id="negative text"),
        pytest.param(lambda: prefill_flops(SMALL, [1, float("nan")]), "got nan", id="no number"),
        pytest.param(lambda: prefill_flops(SMALL, [1, float("inf")]), "got inf", id="infinite"),
        pytest.param(
            lambda: prefill_flops(SMALL, [1, 1], convention="llm-view"),
            "unknown convention 'llm-view': did you mean 'llm-viewer'",
            id="nobody counts so",
        ),
        pytest.param(lambda: kv_bytes(SMALL, [1]), "2 layers .* got 1", id="KV of one layer"),
        pytest.param(lambda: kv_bytes(SMALL, [-3, 1], 5), "got -3", id="negative KV"),
        pytest.param(
            lambda: kv_bytes(SMALL, [1, 1], bytes_per_value=0), "must be 1 or more, got 0", id="0 B"
        ),
        pytest.param(
            lambda: encoder_macs(SMALL, [1, 1], [1]), "2 layers .* got 1", id="too few that leave"
        ),
        pytest.param(lambda: encoder_macs(SMALL, [1, -1]), "got -1", id="negative in the tower"),
        pytest.param(lambda: matrix_macs([4], 1), r"two widths .* got \(4,\)", id="one width"),
        pytest.param(lambda: matrix_macs([4, 0], 1), r"above zero, .* got \(4, 0\)", id="width 0"),
        pytest.param(lambda: matrix_macs([4, 4], -1), "got -1", id="negative vectors"),
        pytest.param(lambda: EncoderShape(4, 0, 2), "intermediate must .* got 0", id="size 0"),
        pytest.param(lambda: EncoderShape(4, 6, 2.5), "layers must .* got 2.5", id="half a layer"),
    ],
)
def test_mistakes_are_told_in_one_line(call, words):
    with pytest.raises(VLMCompressError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_nothing_heavy_is_imported():
    code = (
        "import json, sys, vlmcompress.flops.paper_conventions\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
