"""Families with an adapter of their own: prompts that are shortened before `generate`."""

from __future__ import annotations

import pytest
import torch

import vlmcompress
from vlmcompress.errors import UnsupportedModelError

REFUSED = ("gemma3", "qwen3_vl", "qwen3_vl_moe")


def test_several_pictures_a_row_in_a_batch(subject):
    inputs = subject.batch(subject.prompt(1, 1, text=5), subject.prompt(2, 2, text=7))
    if subject.model.config.model_type in REFUSED:
        with pytest.raises(UnsupportedModelError, match=r"takes no inputs_embeds|deepstack"):
            vlmcompress.shorten(subject.model, inputs, "divprune", "50%")
        return
    length = inputs["input_ids"].shape[1]
    asked = {"output_logits": True, "return_dict_in_generate": True}
    bare = subject.generate(inputs, **asked)
    with vlmcompress.compress(subject.model, "divprune", "50%") as c:
        wanted = subject.generate(inputs, **asked)
        kept = [image.kept for image in c.report().images]
    short = vlmcompress.shorten(subject.model, inputs, "divprune", "50%")
    assert [image.kept for image in short.report.images] == kept
    assert short["inputs_embeds"].shape[1] < length
    for cache in (None, "static"):
        found = subject.generate(dict(short), cache_implementation=cache)
        assert torch.equal(found, wanted.sequences[:, length:])
    assert not torch.allclose(bare.logits[0], wanted.logits[0], atol=1e-3)
