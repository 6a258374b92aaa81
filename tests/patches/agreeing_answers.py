"""What a compressed model answers, by every way to the same answer."""

from __future__ import annotations

from typing import Any

import torch
from bare import Inputs, last_logits
from oracle import TOLERANCE


def agreeing(subject: Any, prompts: Any, inputs: Inputs) -> torch.Tensor:
    """Greedy tokens of a batch of prompts.

    With and without a cache they are the same, of beams as well, and so is every row alone.
    """
    short, ids = last_logits(subject, inputs), subject.generate(inputs)
    assert torch.equal(ids, subject.generate(inputs, use_cache=False))
    beams = subject.generate(inputs, num_beams=2)
    assert torch.equal(beams, subject.generate(inputs, num_beams=2, use_cache=False))
    for row, prompt in enumerate(prompts):
        alone = last_logits(subject, subject.batch(prompt))[0]
        assert (alone - short[row]).abs().max() < TOLERANCE
    return ids
