"""Families without a built-in model, on small models with random weights."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import MODELS, write
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm_cases import ids_of
from vllm_engines import engine_of

import vlmcompress
from vlmcompress.serving import hf_overrides

BUDGET, TOKENS = "50%", 12
NEAR = 0.01
"""Logits that rounding may put in another order."""
METHODS = {name: ["divprune", "mmtok", "tome(stage='projector')"] for name in MODELS}
for _name in ("Qwen2-VL", "Qwen3-VL", "InternVL"):
    METHODS[_name] += ["hiprune", "scope"]
CASES = [(name, method) for name in MODELS for method in METHODS[name]]


class Asked:
    """One family in both engines, and pictures to ask about."""

    def __init__(self, name, folder):
        self.made, folder = MODELS[name], write(folder, name)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(folder)
        overrides = hf_overrides([self.made.class_name], "divprune", BUDGET)
        self.context = engine_of(
            str(folder), name, hf_overrides=overrides, limit_mm_per_prompt={"image": 2, "video": 0}
        )
        self.engine = self.context.__enter__()
        width, height = self.made.size
        pixels = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
        self.pictures = [Image.fromarray(one) for one in pixels]
        self.texts = [f"User : {self.made.placeholder} {one} ?" for one in ("which", "what", "way")]

    def transformers(self, method, budget=BUDGET):
        """Answers, each up to where the two best tokens are as good as equal."""
        answers = []
        for text, picture in zip(self.texts, self.pictures, strict=True):
            inputs = self.processor(text=[text], images=[[picture]], return_tensors="pt")
            pruned = (
                nullcontext()
                if method is None
                else vlmcompress.compress(self.model, method, budget, processor=self.processor)
            )
            with pruned:
                found = self.model.generate(
                    **inputs,
                    max_new_tokens=TOKENS,
                    do_sample=False,
                    eos_token_id=None,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            ids = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            best = torch.cat(found.logits).topk(2).values
            near = (best[:, 0] - best[:, 1] < NEAR).tolist()
            answers.append(ids[: near.index(True)] if True in near else ids)
        return answers

    def vllm(self, settings):
        asked = [
            {
                "prompt": text,
                "multi_modal_data": {"image": [picture]},
                "mm_processor_kwargs": {"vlmcompress": settings},
            }
            for text, picture in zip(self.texts, self.pictures, strict=True)
        ]
        return ids_of(self.engine.generate(asked, TOKENS, ignore_eos=True))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Gives the family that is asked for; one engine lives at a time."""
    now = []

    def of(name):
        if not now or now[0] != name:
            if now:
                now.pop().context.__exit__(None, None, None)
                now.clear()
            now[:] = [name, Asked(name, tmp_path_factory.mktemp("model"))]
        return now[1]

    yield of
    if now:
        now.pop().context.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
def test_answers_are_those_of_compress(asked, name, method):
    family = asked(name)
    full, right = family.transformers(None), family.transformers(method)
    assert sum(map(len, right)) >= TOKENS
    assert right != full
    same(family.vllm({"method": "full"}), full)
    for _ in range(2):  # the second time from the prefix cache
        same(family.vllm({"method": method}), right)


def same(found, right):
    assert [ids[: len(one)] for ids, one in zip(found, right, strict=True)] == right
