"""What papers that select tokens print of their cost follows from their conventions.

Figures are strings, so that their digits say how far off is still right. Schedules are those of the
methods themselves where one is registered.
"""

import math

import pytest
from figures import MIB, VICUNA, VICUNA_13B, G, T, agrees

from vlmcompress.flops.paper_conventions import kv_bytes, matrix_macs, prefill_flops
from vlmcompress.methods.contracts.decoder import tokens_per_layer
from vlmcompress.methods.divprune import DivPrune
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.pyramiddrop import PyramidDrop
from vlmcompress.tokens import Grid

SHAPES = {"7B": VICUNA, "13B": VICUNA_13B}


def schedule(method, tokens, layers=32):
    """Tokens per layer of a decoder method at the default of its paper."""
    return tokens_per_layer(layers, tokens, method.schedule(layers, tokens, None))


# DivPrune (2503.02175): C2 over text and visual tokens, mean over its data sets.
TEXT = [15, 15, 23, 83, 25, 113, 15, 39, 21, 91, 57]
NEXT = [2225, 1922, 2239, 1927, 2108, 1882, 2292, 2249, 2250, 1598, 2116]
VIDEO = [28, 63, 21, 38, 196]


@pytest.mark.parametrize(
    ("size", "visual", "text", "ratio", "full", "pruned", "share"),
    [
        pytest.param("7B", [576] * 11, TEXT, 0.098, "3.228", "0.512", "15.63", id="LLaVA-1.5-7B"),
        pytest.param("13B", [576] * 11, TEXT, 0.098, "6.281", "1.002", "15.71", id="LLaVA-1.5-13B"),
        pytest.param("7B", NEXT, TEXT, 0.098, "11.849", "1.266", "10.7966", id="LLaVA-NeXT-7B"),
        pytest.param("7B", [1152] * 5, VIDEO, 0.1, "6.539", "0.937", "14.10", id="video"),
        pytest.param(
            "7B", [576] * 4, [83, 113, 21, 91], 0.098, None, None, "19.61", id="its ablations"
        ),
    ],
)
def test_divprune_counts_text_and_visual_tokens(size, visual, text, ratio, full, pruned, share):
    shape, method = SHAPES[size], DivPrune(ratio=ratio)

    def cost(tokens):
        return [prefill_flops(shape, [n] * shape.layers, t, "c2") for n, t in tokens]

    kept = [method.keep_count(Grid(1, 1, n), None) for n in visual]
    before, after = cost(zip(visual, text, strict=True)), cost(zip(kept, text, strict=True))
    if full:
        agrees(sum(before) / len(text) / T, full)
        agrees(sum(after) / len(text) / T, pruned)
    shares = [100 * a / b for a, b in zip(after, before, strict=True)]
    agrees(sum(shares) / len(text), share)


@pytest.mark.parametrize(
    ("visual", "published"), [(576, "8.63"), (192, "3.56"), (128, "2.71"), (64, "1.87")]
)
def test_hiprune_counts_with_calflops_the_tower_and_49_text_tokens(visual, published):
    tower = 24 * (4 * matrix_macs([1024, 1024], 577) + matrix_macs([1024, 4096, 1024], 577))
    projector = matrix_macs([1024, 4096, 4096], 576)
    prefill = prefill_flops(VICUNA, [visual] * 32, 49, "calflops")
    agrees((prefill + 2 * (tower + projector)) / T, published)
    slope = prefill_flops(VICUNA, [visual + 1] * 32, 49, "calflops") - prefill
    agrees(slope / G, "13.21")


# FastV (2403.06764), Table 1: billions of multiply-adds of a mean layer, over all tokens of the
# prompt. Some 90 % rows count 57.6 of the 576 visual tokens.
def fastv_row(size, prompt, k, kept):
    shape = SHAPES[size]
    lengths = tokens_per_layer(shape.layers, 576, {k: kept})
    return prefill_flops(shape, lengths, prompt - 576, "fastv") / G


@pytest.mark.parametrize(
    ("size", "prompt", "k", "kept", "published"),
    [
        ("7B", 611, 2, 57.6, "19.9"),
        ("7B", 611, 2, 144, "32.8"),
        ("7B", 611, 2, 288, "54.6"),
        ("7B", 612, 3, 58, "22.8"),
        ("7B", 611, 5, 57.6, "27.8"),
        ("13B", 612, 2, 57.6, "29.7"),
        ("13B", 612, 2, 144, "50.2"),
        ("13B", 612, 2, 288, "84.6"),
        ("13B", 612, 3, 57.6, "33.0"),
        ("13B", 612, 3, 144, "52.9"),
        ("13B", 612, 3, 288, "86.4"),
        ("13B", 612, 5, 57.6, "39.6"),
        ("13B", 612, 5, 144, "58.4"),
        ("13B", 612, 5, 288, "90.1"),
    ],
)
def test_fastv_prints_the_mean_over_layers(size, prompt, k, kept, published):
    agrees(fastv_row(size, prompt, k, kept), published)
    method = FastV(k=k, ratio=round(1 - kept / 576, 2))
    assert method.schedule(SHAPES[size].layers, 576, None) == {k: round(kept)}


@pytest.mark.parametrize(
    ("size", "k", "dropped", "published"),
    [
        ("7B", 3, 0.75, 34.8),
        ("7B", 3, 0.5, 56.6),
        ("7B", 5, 0.75, 39.7),
        ("7B", 5, 0.5, 59.6),
        ("7B", 0, 0.9, 18.9),
        ("7B", 0, 0.75, 28.8),
        ("7B", 0, 0.5, 51.6),
        ("13B", 0, 0.5, 78.9),
    ],
)
def test_some_rows_of_fastv_do_not_follow_from_its_formula(size, k, dropped, published):
    """Neither from 611 nor from 612 tokens, whatever becomes of the fraction at 90 %."""
    for prompt in (611, 612):
        for kept in {576 * (1 - dropped), round(576 * (1 - dropped)), int(576 * (1 - dropped))}:
            assert abs(fastv_row(size, prompt, k, kept) - published) > 0.05


@pytest.mark.parametrize(("size", "published"), [("7B", "99.3"), ("13B", "154.6")])
def test_fastv_starts_from_612_tokens(size, published):
    agrees(fastv_row(size, 612, 1, 576), published)


@pytest.mark.parametrize(("kept", "published"), [(57.6, "20"), (144, "33"), (288, "55")])
def test_fastv_s_share_of_the_full_cost(kept, published):
    agrees(100 * fastv_row("7B", 611, 2, kept) / fastv_row("7B", 611, 2, 576), published)


@pytest.mark.parametrize(
    ("tokens", "full", "shares", "fastv"),
    [
        pytest.param(576, "3.82", {0.4: "1.54", 0.5: "1.78", 0.6: "2.06"}, "2.01", id="LLaVA"),
        pytest.param(2880, "20.8", {0.4: "8.22", 0.5: "9.46", 0.6: "11.0"}, "10.6", id="NeXT-5"),
        pytest.param(5184, "40.6", {0.4: "15.7", 0.5: "18.1", 0.6: "21.0"}, None, id="NeXT-9"),
    ],
)
def test_pyramiddrop_counts_visual_tokens_with_c3(tokens, full, shares, fastv):
    agrees(prefill_flops(VICUNA, [tokens] * 32) / T, full)
    for lam, published in shares.items():
        agrees(prefill_flops(VICUNA, schedule(PyramidDrop(lam=lam), tokens)) / T, published)
    if fastv:
        agrees(prefill_flops(VICUNA, schedule(FastV(), tokens)) / T, fastv)


# FEATHER (2412.13180): what C2 over 729 image tokens saves, without the digits after the point.
def two_cuts(first):
    """Its own: `first` tokens after layer 8 and int(0.09 * first) after layer 16."""
    return tokens_per_layer(32, 729, {8: first, 16: int(first * (1 - 0.7) ** 2)})


@pytest.mark.parametrize(
    ("lengths", "derived", "published"),
    [
        pytest.param(schedule(FastV(k=3, ratio=0.75), 729), "68.6", 68, id="fastv at layer 3"),
        pytest.param(schedule(FastV(k=8, ratio=0.75), 729), "56.8", 56, id="fastv at layer 8"),
        pytest.param(tokens_per_layer(32, 729, {3: 196}), "66.9", 66, id="stride 2 at layer 3"),
        pytest.param(tokens_per_layer(32, 729, {8: 196}), "55.4", 55, id="stride 2 at layer 8"),
        pytest.param(tokens_per_layer(32, 729, {3: 243}), "61.2", 61, id="with a grid at layer 3"),
        pytest.param(two_cuts(268), "64.4", 64, id="feather with 268 after the first cut"),
        pytest.param(two_cuts(278), "64.0", 64, id="feather with 278 after the first cut"),
        pytest.param(schedule(PyramidDrop(lam=0.3), 729), "64.9", None, id="pyramiddrop, 65"),
    ],
)
def test_feather_counts_what_is_saved(lengths, derived, published):
    full = prefill_flops(VICUNA, [729] * 32, convention="c2")
    saved = 100 * (1 - prefill_flops(VICUNA, lengths, convention="c2") / full)
    agrees(saved, derived)
    assert published in (None, math.floor(saved))


# AdaptInfer (2508.06084): each cut acts on the output of its layer, its counter says one earlier.
def adaptinfer(kept, cuts=(1, 10, 20), tokens=576, layers=32):
    """Tokens that enter each layer, and those that its counter adds up."""
    true = {cut + 1: k for cut, k in zip(cuts, kept, strict=True)}
    counter = dict(zip(cuts, kept, strict=True))
    return (tokens_per_layer(layers, tokens, cuts) for cuts in (true, counter))


@pytest.mark.parametrize(
    ("kept", "counted", "mean", "visual", "with_text", "kv"),
    [
        pytest.param((290, 72, 18), "128.8", "146.3", "0.959", "1.538", "73.1", id="128"),
        pytest.param((133, 27, 3), "65.0", "82.9", "0.543", "1.119", "41.4", id="64"),
        pytest.param((80, 24, 2), "48.8", "66.7", "0.438", "1.013", "33.3", id="48"),
        pytest.param((40, 12, 0), "33.0", "51.0", "0.336", "0.910", "25.5", id="32"),
    ],
)
def test_adaptinfer_s_presets(kept, counted, mean, visual, with_text, kv):
    true, counter = adaptinfer(kept)
    agrees(sum(counter) / 32, counted)
    agrees(sum(true) / 32, mean)
    agrees(prefill_flops(VICUNA, true) / T, visual)
    agrees(prefill_flops(VICUNA, true, 88) / T, with_text)
    agrees(kv_bytes(VICUNA, true) / MIB, kv)
    agrees(prefill_flops(VICUNA, [576] * 32, 88) / T, "4.416")


@pytest.mark.parametrize(
    ("cuts", "large", "small"),
    [
        ((1, 11, 21), "127.2", "63.8"),
        ((1, 11, 22), "128.8", "64.7"),
        ((1, 10, 20), "120.4", "60.2"),
    ],
    ids=str,
)
def test_adaptinfer_s_counter_at_40_layers(cuts, large, small):
    for kept, published in [((300, 94, 30), large), ((148, 40, 5), small)]:
        _, counter = adaptinfer(kept, cuts, layers=40)
        agrees(sum(counter) / 40, published)


@pytest.mark.parametrize(
    ("left", "counted", "mean"),
    [
        ((0.17, 0.6, 0.3), "10.1", "13.6"),
        ((0.5, 0.6, 0.3), "29.7", "32.9"),
        ((0.7, 0.9, 0.3), "51.1", "54.0"),
    ],
    ids=["10 %", "30 %", "50 %"],
)
def test_adaptinfer_s_shares_on_qwen2_vl_2b(left, counted, mean):
    kept = [10_000 * math.prod(left[: cut + 1]) for cut in range(3)]
    true, counter = adaptinfer(kept, (0, 9, 19), tokens=10_000, layers=28)
    agrees(sum(counter) / 28 / 100, counted)
    agrees(sum(true) / 28 / 100, mean)


# The settings side by side: LLaVA-1.5-7B, C3, visual tokens only, float16.
@pytest.mark.parametrize(
    ("lengths", "mean", "cost", "share", "kv"),
    [
        pytest.param([576] * 32, "576", "3.817", "1.000", "288", id="vanilla"),
        pytest.param([192] * 32, "192", "1.253", "0.328", "96", id="192 before the decoder"),
        pytest.param([128] * 32, "128", "0.833", "0.218", "64", id="128 before the decoder"),
        pytest.param([64] * 32, "64", "0.416", "0.109", "32", id="64 before the decoder"),
        pytest.param([56] * 32, "56", "0.363", "0.095", "28", id="56 before the decoder"),
        pytest.param(
            schedule(FastV(k=2, ratio=0.5), 576), "306", "2.007", "0.526", "153", id="fastv 2 50%"
        ),
        pytest.param(
            schedule(FastV(k=2, ratio=0.75), 576), "171", "1.118", "0.293", "85.5", id="fastv 2 75%"
        ),
        pytest.param(
            schedule(FastV(k=3, ratio=0.5), 576), "315", "2.068", "0.542", "157.5", id="fastv 3 50%"
        ),
        pytest.param(
            schedule(FastV(k=3, ratio=0.75), 576),
            "184.5",
            "1.208",
            "0.316",
            "92.3",
            id="fastv 3 75%",
        ),
        pytest.param(
            schedule(PyramidDrop(), 576), "270", "1.777", "0.466", "135", id="pyramiddrop"
        ),
    ],
)
def test_what_a_setting_costs_on_llava(lengths, mean, cost, share, kv):
    agrees(sum(lengths) / 32, mean)
    agrees(prefill_flops(VICUNA, lengths) / T, cost)
    agrees(prefill_flops(VICUNA, lengths) / prefill_flops(VICUNA, [576] * 32), share)
    agrees(kv_bytes(VICUNA, lengths) / MIB, kv)
