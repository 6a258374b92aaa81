"""Subjects by name, each built once in a process."""

from __future__ import annotations

from functools import cache
from typing import Any

from subject_models import SUBJECTS

PACKED = [
    f"random {family}{clips}"
    for family in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
    for clips in ("", " with clips")
] + ["tiny-qwen", "tiny-qwen with clips"]
"""Their towers take all pictures as one sequence."""
BLOCKS = {
    "random internvl": (2, 1),
    "random idefics3": (2, 0),
    "random smolvlm": (2, 0),
    "random gemma3": (2, 0),
}
"""Their towers take tiles, blocks of whose patches become a token: patches along a side of a token,
and tokens of a tile that are no patches."""


def subject_of(name: str) -> Any:
    """With SDPA, whatever a test before left it with."""
    subject = _built(name)
    subject.model.set_attn_implementation("sdpa")
    return subject


@cache
def _built(name: str) -> Any:
    return SUBJECTS[name]()
