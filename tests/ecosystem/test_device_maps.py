"""Every family with the hooks of accelerate on it, as a `device_map` of two places puts them on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from subject_models import SUBJECTS
from upstream_methods import Bright, Huddle

from vlmcompress.api import compress

NOT_INSIDE = ("internvl", "idefics", "smol", "gemma", "next-video with", "onevision with")
"""Whose encoder takes no method."""


def methods(name: str) -> list[Any]:
    """One that looks at features, one at a signal, one in the encoder, one in the decoder, all."""
    if "mistral" in name:  # its tower shows nothing
        return ["divprune", "mmtok", "fastv", "divprune+fastv"]
    if "qwen" in name:
        return ["divprune", "hiprune", Bright(), "fastv", "pixelprune+divprune+fastv"]
    if any(word in name for word in NOT_INSIDE):
        return ["divprune", "hiprune", "fastv", "hiprune+fastv"]
    return ["divprune", "hiprune", Huddle(), "fastv", "tome+divprune+pyramiddrop"]


CASES = [(name, method) for name in SUBJECTS for method in methods(name)]
FAST = [pair for number, pair in enumerate(CASES) if number % 11 == 0]


def answer(subject: Any, inputs: Any, method: Any) -> tuple[Any, Any]:
    with compress(subject.model, method, "50%") as c:
        ids = subject.generate(inputs, max_new_tokens=2)
        return ids, [image.kept for image in c.report().images]


def hooked(name: str) -> Any:
    subject = SUBJECTS[name]()
    dispatch_model(subject.model, {"": "cpu"}, force_hooks=True)
    assert hasattr(subject.model, "_hf_hook")
    return subject


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else value.name


def check(name: str, method: Any) -> None:
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    inputs = subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))
    wanted = answer(subject, inputs, method)
    torch.manual_seed(0)
    found = answer(hooked(name), inputs, method)
    assert torch.equal(found[0], wanted[0])
    assert found[1] == wanted[1]


@pytest.mark.parametrize(("name", "method"), FAST, ids=name_of)
def test_ids_are_those_without_the_hooks(name, method):
    check(name, method)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c not in FAST], ids=name_of)
def test_ids_are_those_without_the_hooks_in_all_pairs(name, method):
    check(name, method)
