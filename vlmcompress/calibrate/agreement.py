"""Whether a reduced model still says what the whole one says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmcompress.api import compress
from vlmcompress.methods.contracts.method import Method

Inputs = Sequence[dict[str, Any]]
"""Some batches of prompts."""


def next_tokens(model: Any, inputs: Inputs, method: str | Method) -> Tensor:
    """[questions] int64: the likeliest next token of each prompt."""
    return torch.cat([logits.argmax(-1) for logits in _logits(model, inputs, method)])


def agreement(some: Tensor, others: Tensor) -> float:
    """Share of the questions with the same next token."""
    return float((some == others).double().mean())


def log_likelihood(model: Any, inputs: Inputs, method: str | Method, tokens: Tensor) -> float:
    """Mean natural logarithm of the probability of given next tokens.

    Args:
        model: of a supported family.
        inputs: the prompts.
        method: how it is reduced.
        tokens: [questions] int64.
    """
    found = [logits.float().log_softmax(-1) for logits in _logits(model, inputs, method)]
    return float(torch.cat(found).gather(1, tokens[:, None]).mean())


def _logits(model: Any, inputs: Inputs, method: str | Method) -> Iterator[Tensor]:
    """[batch, words] of each batch."""
    with compress(model, method), torch.no_grad():
        for part in inputs:
            yield model(**part, use_cache=False).logits[:, -1]
