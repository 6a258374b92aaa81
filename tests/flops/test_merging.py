"""What papers that merge tokens, or probe them, print of their cost follows from the same formulas.

Figures are strings, so that their digits say how far off is still right.
"""

import pytest
from figures import QWEN2_7B, VICUNA, G, T, agrees

from vlmcompress.flops.paper_conventions import (
    EncoderShape,
    encoder_macs,
    matrix_macs,
    prefill_flops,
)
from vlmcompress.methods.contracts.decoder import tokens_per_layer

CLIP_L = EncoderShape(hidden=1024, intermediate=4096, layers=23)
"""Up to the layer whose features LLaVA takes."""


# AIM (2412.03248): LLM-Viewer's count. The model runs the first layer of the fall in full, which
# the paper's script counts as shortened: the fall begins at layer 14 (13), and acts from 15 (14).
def aim(layers, merged, first):
    """`merged` tokens up to layer `first` - 1, then eight equal steps down to none."""
    fall = {first + step: int(merged * (7 - step) / 8) for step in range(8)}
    return tokens_per_layer(layers, merged, fall)


@pytest.mark.parametrize(
    ("shape", "lengths", "text", "published"),
    [
        pytest.param(QWEN2_7B, [6272] * 28, 100, "99.63", id="OneVision, 32 frames"),
        pytest.param(QWEN2_7B, [1568] * 28, 100, "22.90", id="OneVision, merge only"),
        pytest.param(QWEN2_7B, aim(28, 1568, 14), 100, "14.76", id="OneVision, as published"),
        pytest.param(QWEN2_7B, aim(28, 1568, 15), 100, "15.53", id="OneVision, as acting"),
        pytest.param(QWEN2_7B, aim(28, 9408, 14), 100, "99.27", id="OneVision, 192 frames"),
        pytest.param(VICUNA, [576] * 32, 40, "8.18", id="LLaVA"),
        pytest.param(VICUNA, aim(32, 72, 13), 40, "1.00", id="LLaVA, 72 tokens"),
        pytest.param(VICUNA, aim(32, 72, 14), 40, "1.03", id="LLaVA, 72 tokens as acting"),
        pytest.param(VICUNA, aim(32, 252, 13), 40, "2.22", id="LLaVA, 252 tokens"),
    ],
)
def test_aim_counts_with_llm_viewer(shape, lengths, text, published):
    agrees(prefill_flops(shape, lengths, text, "llm-viewer") / T, published)


def test_aim_s_lengths_and_means():
    assert [n + 100 for n in aim(28, 1568, 14)] == (
        [1668] * 14 + [1472, 1276, 1080, 884, 688, 492, 296] + [100] * 7
    )
    agrees(sum(aim(28, 1568, 15)) / 28 / 1568, "0.661")
    agrees(sum(aim(32, 72, 14)) / 32 / 72, "0.547")


def test_zoo_prune_s_probes_cost_more_than_the_prefill_that_remains():
    """64 directions on 576 tokens, 2 FLOPs per multiply-add, against LLM-Viewer's prefill."""
    pass_ = 2 * matrix_macs([1024, 4096, 4096], 576)
    probes = 2 * 64 * pass_
    agrees(probes / T, "3.09")
    full, rest = (prefill_flops(VICUNA, [n] * 32, 40, "llm-viewer") for n in (576, 64))
    agrees(rest / T, "1.35")
    agrees(100 * probes / full, "38")
    agrees(probes / rest, "2.3")
    tangents = 2 * (matrix_macs([1024, 4096], 64) + matrix_macs([4096, 4096], 64 * 576))
    agrees((pass_ + tangents) / T, "1.26")
    agrees(2 * matrix_macs([4096, 256], 64 * 576) / G, "77")


def pitome(share, layers=23):
    """Tokens of CLIP that enter each layer; the plain split of layers 0 to 12 counts CLS."""
    lengths, tokens = [], 577
    for layer in range(layers):
        lengths.append(tokens)
        mergeable = tokens - (layer > 12)
        tokens -= int(mergeable - mergeable * share)
    return lengths, tokens - 1


@pytest.mark.parametrize(
    ("share", "left", "published"),
    [
        (0.85, 17, None),
        (0.875, 30, None),
        (0.9, 54, "70.6"),
        (0.925, 101, "86.1"),
        (0.95, 183, None),
        (0.975, 330, None),
        (1.0, 576, "182.7"),
    ],
)
def test_pitome_s_tower(share, left, published):
    lengths, visual = pitome(share)
    assert visual == left
    if published:
        agrees(encoder_macs(CLIP_L, lengths) / G, published)


def test_mctf_s_deit_s():
    """It merges inside the layer: only queries, keys and their products see all that enter."""
    leaving = [197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21]
    shape = EncoderShape(hidden=384, intermediate=1536, layers=12)
    ends = matrix_macs([3 * 16 * 16, 384], 196) + matrix_macs([384, 1000], 1)
    agrees((encoder_macs(shape, [197] * 12) + ends) / G, "4.599")
    agrees((encoder_macs(shape, [197, *leaving[:-1]], leaving) + ends) / G, "2.577")
