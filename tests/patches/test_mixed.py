"""Images and clips in one prompt, against the bare model's decoder under masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from subject_models import SUBJECTS

from vlmcompress.api import compress

FAMILIES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-next-video", "llava-onevision"]


def mixed(family: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A prompt with an image, a clip and an image again."""
    image = SUBJECTS[f"random {family}"]()
    clip = SUBJECTS[f"random {family} with clips"]()
    (first, pixels), (second, frames) = image.prompt(1, 1, text=2), clip.prompt(1, 2, text=3)
    third, more = image.prompt(1, 3)
    ids = torch.tensor([first + second + third])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = [image.types(ids), clip.types(ids)]
    inputs |= {name: sum(kind[name] for kind in kinds) for name in kinds[0]}
    inputs |= image.images([pixels, more]) | clip.images([frames])
    return image, clip, inputs


@torch.no_grad()
def bare(model: Any, lm: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """Last logits of the bare model and what its decoder was given."""
    seen: list[Any] = []
    hook = lm.register_forward_pre_hook(lambda *a: seen.append(a[2]), with_kwargs=True)
    logits = model(**inputs).logits[:, -1]
    hook.remove()
    return logits, seen[0]


@torch.no_grad()
def masked(model: Any, lm: Any, given: Any, present: list[torch.Tensor]) -> torch.Tensor:
    """The bare decoder with the columns that are gone closed in each layer."""
    handles = []
    for layer, keys in zip(lm.layers, present, strict=True):
        length = len(keys)
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & keys
        mask = torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo().min)

        def close(_: Any, args: Any, kwargs: Any, mask: torch.Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.register_forward_pre_hook(close, with_kwargs=True))
    logits = model.lm_head(lm(**{**given, "use_cache": False}).last_hidden_state[:, -1])
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("method", ["divprune", "fastv", "divprune+pyramiddrop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_a_clip_and_an_image_equal_the_whole_masked(family, method):
    image, clip, inputs = mixed(family)
    model, lm, ids = image.model, image.lm, inputs["input_ids"][0]
    full, given = bare(model, lm, inputs)
    with compress(model, method, budget="55%") as c, torch.no_grad():
        short = model(**inputs).logits[:, -1]
    (a, b), (frames,) = image.columns(ids), clip.columns(ids)
    subjects = [(image, a), (clip, frames), (image, b)]
    images = c.report().images
    assert [i.before for i in images] == [s.tokens_per_image for s, _ in subjects]
    present = [torch.ones(len(ids), dtype=torch.bool) for _ in lm.layers]
    for report, (subject, columns) in zip(images, subjects, strict=True):
        for layer, keys in enumerate(present):
            kept = [report.kept, *(k for cut, k in sorted(report.cuts.items()) if cut <= layer)][-1]
            ends = [p for p, x, y in subject.separators if any(x <= k < y for k in kept)]
            keys[columns] = False
            keys[subject.visual(columns)[kept]] = True
            keys[columns[ends]] = True
    assert (short - masked(model, lm, given, present)).abs().max() < 1e-4
    assert (short - full).abs().max() > 1e-2
    with compress(model, method, budget="55%"):
        options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [98, 99]}
        cached = model.generate(**inputs, **options, eos_token_id=None, pad_token_id=0)
        again = model.generate(
            **inputs, **options, eos_token_id=None, pad_token_id=0, use_cache=False
        )
        assert torch.equal(cached, again)
