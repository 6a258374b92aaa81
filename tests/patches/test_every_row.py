"""Law 2 in float64, for every token that is left and not only for the last.

In float32 a small mistake looks like rounding, and the last token may not look where it was made.
"""

from __future__ import annotations

import pytest
import torch
from mechanisms import MECHANISMS
from oracle import budget, every_row
from subject_models import SUBJECTS

from vlmcompress.api import compress

TOLERANCE = 1e-8
METHODS = ["divprune", "text-only", "pyramiddrop", "divprune+fastv"]
"""None that merges: means are taken in float32 by the contract of ops, which 1e-8 would show."""


@pytest.fixture(scope="module", params=list(MECHANISMS))
def precise(request):
    """Each mechanism in float64."""
    subject = SUBJECTS[request.param]()
    subject.model.double()
    return subject


@torch.no_grad()
def all_logits(subject, inputs):
    """[B, Q, V] of every row that the decoder still computes."""
    return subject.model(**inputs, position_ids=subject.positions(inputs)).logits


@pytest.mark.parametrize("method", METHODS)
def test_law_2_every_row_that_is_left_equals_the_whole_masked(precise, method):
    inputs = precise.batch(
        precise.prompt(1, 5), precise.prompt(2, 7, text=3), precise.prompt(0, 2, text=9)
    )
    whole = all_logits(precise, inputs)
    with compress(precise.model, method, budget=budget(method)) as c:
        short = all_logits(precise, inputs)
    masked, present = every_row(c.report(), precise, inputs)
    assert short.dtype == torch.float64
    assert short.shape[1] == present.sum(1).max() < whole.shape[1]
    for row, left in enumerate(present):
        found = short[row, short.shape[1] - int(left.sum()) :]
        assert (found - masked[row, left]).abs().max() < TOLERANCE
    # The last text of each prompt with a picture has noticed that something is gone.
    assert ((masked - whole)[:2, -1].abs().amax(1) > 1e-2).all()
