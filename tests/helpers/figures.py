"""Published figures of cost, and the shapes that most of them are about."""

import pytest
from transformers import LlamaConfig, Qwen2_5_VLTextConfig

from vlmcompress.flops.paper_conventions import DecoderShape

VICUNA = DecoderShape.of(LlamaConfig())
VICUNA_13B = DecoderShape.of(
    LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    )
)
QWEN2_7B = DecoderShape.of(
    Qwen2_5_VLTextConfig(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
)
"""Of Qwen2.5-VL and of LLaVA-OneVision."""
T, G, MIB = 1e12, 1e9, 2**20


def agrees(value, published):
    """Whether `value` is `published`, a string, to half a unit of its last digit."""
    decimals = len(published.partition(".")[2])
    assert value == pytest.approx(float(published), rel=0, abs=0.5 * 10**-decimals + 1e-9)
