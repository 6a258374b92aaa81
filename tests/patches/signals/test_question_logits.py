"""The first decoder layer matches question and tokens as its own projections say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from looker import looker
from mechanisms import MECHANISMS
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.methods import get_method
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.signals.availability import given_by

SIGNAL = "question_logits"


@torch.no_grad()
def by_hand(subject: Any, text: torch.Tensor, features: torch.Tensor) -> list[list[float]]:
    """[N][H]: head by head, word by word and token by token."""
    layer, heads = subject.lm.layers[0], []
    attention = layer.self_attn
    q = attention.q_proj(layer.input_layernorm(text)).unflatten(-1, (-1, attention.head_dim))
    k = attention.k_proj(layer.input_layernorm(features)).unflatten(-1, (-1, attention.head_dim))
    q = attention.q_norm(q) if hasattr(attention, "q_norm") else q
    k = attention.k_norm(k) if hasattr(attention, "k_norm") else k
    shared = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        products = [
            [float(word[head] @ token[head // shared]) * attention.scaling for word in q]
            for token in k
        ]
        heads.append([sum(line) / len(line) for line in products])
    return [list(column) for column in zip(*heads, strict=True)]


@pytest.mark.parametrize("name", list(MECHANISMS))
@torch.no_grad()
def test_it_is_the_mean_over_the_words_of_the_question(name):
    subject = SUBJECTS[name]()
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(2, 4, text=9))
    method, shown = looker(SIGNAL, "text")
    with compress(subject.model, method, budget="50%"):
        subject.model(**inputs)
    assert len(shown) >= 3
    for tokens in shown:
        found = tokens.question_logits
        assert found.dtype == torch.float32
        expected = torch.tensor(by_hand(subject, tokens.text, tokens.features))
        assert (found - expected).abs().max() < 1e-5
        assert found.std() > 1e-3
        assert not torch.allclose(found[:, 0], found[:, -1])


def test_behind_a_method_that_merged_it_is_of_what_is_left():
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(1, 3, text=4))
    method, shown = looker(SIGNAL, "text")
    for before in ("tome", "unit-drop(layer=1)"):
        with compress(subject.model, [get_method(before), method], budget="30%"), torch.no_grad():
            subject.model(**inputs)
        tokens = shown.pop()
        assert len(tokens.question_logits) == len(tokens.features) == len(tokens.grid)
        expected = torch.tensor(by_hand(subject, tokens.text, tokens.features))
        assert (tokens.question_logits - expected).abs().max() < 1e-5


def test_layers_with_other_names_do_not_give_it(random_subject, monkeypatch):
    family = family_of(random_subject.model)
    assert SIGNAL in given_by(family, random_subject.model.model)
    monkeypatch.setattr(type(family), "no_scores", "for the test")
    assert SIGNAL not in given_by(family_of(random_subject.model), random_subject.model.model)
    with pytest.raises(UnsupportedModelError, match="hawk needs question_logits, which this llava"):
        compress(random_subject.model, "hawk", budget="50%")
