"""What merging inside a tower costs: nothing that the tower has computed is computed again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.families.tower_layers import attention_layers
from vlmcompress.patches.signals.tower_attention import AttentionCall


def projected(subject: Any, method: str | None) -> Counter[str]:
    """How often each projection of the tower's attention runs in one call."""
    found: Counter[str] = Counter()
    towers = family_of(subject.model).towers(subject.model.model)
    handles = [
        getattr(attention, name).register_forward_hook(
            lambda *_, key=f"{number}.{name}": found.update([key])
        )
        for tower in towers
        for number, (_, attention) in enumerate(attention_layers(tower))
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    inputs = subject.batch(subject.prompt(1, 1))
    with torch.no_grad():
        if method is None:
            subject.model(**inputs)
        else:
            with compress(subject.model, method, "50%"):
                subject.model(**inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("method", ["tome", "pitome", "mctf"])
def test_no_projection_runs_twice(method):
    subject = SUBJECTS["random llava"]()
    bare = projected(subject, None)
    assert min(bare.values()) == 1
    assert projected(subject, method) == bare


@pytest.mark.parametrize("method", ["tome", "mctf"])
def test_what_was_kept_is_what_would_be_computed(method, monkeypatch):
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(2, 1))

    def logits() -> torch.Tensor:
        with torch.no_grad(), compress(subject.model, method, "50%"):
            return subject.model(**inputs).logits

    kept = logits()
    anew = AttentionCall._projection

    def computed(self: AttentionCall, name: str) -> torch.Tensor:
        self.projected.clear()
        return anew(self, name)

    monkeypatch.setattr(AttentionCall, "_projection", computed)
    assert torch.equal(logits(), kept)
    monkeypatch.setattr(AttentionCall, "_projection", lambda *a: -computed(*a).flip(1))
    assert not torch.equal(logits(), kept)
