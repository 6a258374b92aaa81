"""Fixtures over the subjects of the seven laws."""

from __future__ import annotations

from typing import Any

import pytest
from subject_models import LLAVA, SEPARATED, SUBJECTS
from subjects import Subject

_built: dict[str, Subject] = {}


def _get(name: str) -> Subject:
    if name not in _built:
        _built[name] = SUBJECTS[name]()
    _built[name].model.set_attn_implementation("sdpa")
    return _built[name]


@pytest.fixture(params=list(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each supported model in turn, float32, attention set back to SDPA."""
    return _get(request.param)


@pytest.fixture(params=list(LLAVA))
def llava(request: pytest.FixtureRequest) -> Subject:
    """Those whose positions are one number per token."""
    return _get(request.param)


@pytest.fixture(params=SEPARATED)
def separated(request: pytest.FixtureRequest) -> Subject:
    """Those with placeholders that are no visual tokens."""
    return _get(request.param)


@pytest.fixture
def qwen() -> Subject:
    """Qwen2.5-VL with a random config."""
    return _get("random qwen2.5-vl")


@pytest.fixture
def random_subject() -> Subject:
    """A private random-config LLaVA that a test may spoil."""
    return LLAVA["random llava"]()


_CASES = {
    "one image": [(1, 5)],
    "two images": [(2, 6)],
    "batch of 1 and 2 images": [(1, 5), (2, 7)],
    "batch with a text-only row": [(1, 7), (0, 5)],
    "rows of one length with 1 and 2 images": [(1, None), (2, 6)],
}


@pytest.fixture(params=list(_CASES))
def prompts(request: pytest.FixtureRequest, subject: Subject) -> list[Any]:
    """Prompts of one batch: images per prompt, and words of text, which differ to force padding."""
    # Text instead of an image: no padding at first, but ragged once images shrink.
    instead = len(subject.image()) + 2
    return [
        subject.prompt(images, seed, text=6 + instead if text is None else text)
        for seed, (images, text) in enumerate(_CASES[request.param], start=1)
    ]
