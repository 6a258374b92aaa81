"""Prompts that are shortened before `generate`, for every model type: as inside `compress`."""

from __future__ import annotations

import pytest
import torch
from scope import TOLERANCES
from shortening import TOLERANCE, apart

import vlmcompress
from vlmcompress.errors import UnsupportedModelError

REFUSED = {
    "takes no inputs_embeds": {
        "ernie4_5_vl_moe",
        "exaone4_5",
        "gemma3",
        "gemma4",
        "gemma4_unified",
        "hyperclovax_vision_v2",
        "paligemma",
        "shieldgemma2",
    },
    "sliding_attention": {
        "aya_vision",
        "cohere2_vision",
        "dots3_note",
        "gemma3n",
        "idefics2",
        "lfm3_vl",
        "muse_glimmer",
        "muse_spark",
        "unlimited_ocr",
    },
    "chunked_attention": {"llama4"},
    "indexed_attention": {"glm5_next", "hy_v4_vl", "mistral_large4", "qwen4_exp"},
    "hybrid": {"inkling2", "inkling2_loop"},
    "images that attend to themselves": {"inkling_mm_model", "molmo2"},
    "deepstack_visual_embeds": {
        "cohere_compass",
        "cosmos3_omni",
        "granite_docling",
        "qwen3_omni_moe_thinker",
        "qwen3_vl",
        "qwen3_vl_moe",
    },
    "vision_mask": {"granite4_vision"},
}
"""What the message says -> model types."""


def test_generates_as_the_compressed_model(case):
    why = [text for text, types in REFUSED.items() if case.model_type in types]
    inputs = case.both
    if why:
        with pytest.raises(UnsupportedModelError, match=why[0]):
            vlmcompress.shorten(case.model, inputs, "divprune", "50%")
        assert torch.equal(case.logits(inputs), case.bare_both), "the model is as it was"
        return
    tolerance = TOLERANCES.get(case.model_type, TOLERANCE)
    short = vlmcompress.shorten(case.model, inputs, "divprune", "50%")
    assert short.report.engaged
    assert short["inputs_embeds"].shape[1] < inputs["input_ids"].shape[1]
    with vlmcompress.compress(case.model, "divprune", "50%"):
        wanted = case.generate(inputs)
    assert apart([wanted.logits[0]], [case.bare_both[:, -1]]) > 10 * tolerance
    for cache in (None, "static"):
        found = case.generate(short, cache_implementation=cache)
        assert apart(wanted.logits, found.logits) < tolerance, cache
        new = wanted.sequences[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(found.sequences, new), cache
