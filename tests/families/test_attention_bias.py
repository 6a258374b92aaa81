"""A bias of attention logits reaches the attention of every model type, or is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from model_case import Case
from references import kept_columns
from scope import TOLERANCES, VOID
from shortening import TOLERANCE, apart, is_void

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedModelError
from vlmcompress.laws import references

SIZES = "restore(divprune, merge=False, distance=False)"
"""Its bias is + ln(N / n) for visual tokens in layer 0, and nothing elsewhere."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@pytest.fixture
def taken(case: Case) -> Case:
    """Those whose layers are all attention; the others refuse it in one line."""
    if set(case.kinds) <= ATTENTION:
        return case
    with pytest.raises(UnsupportedModelError, match="adds a bias to attention") as error:
        compress(case.model, SIZES, budget="50%")
    assert "\n" not in str(error.value)
    pytest.skip("refused")


def biased(case: Case, report: Any) -> torch.Tensor:
    """Logits of the bare model, dropped tokens closed and the bias in its first layer's mask."""
    keep = [kept_columns(case, report, case.single, layer) for layer in range(case.depth)]
    (image,) = report.images
    visual = (case.single["input_ids"] == case.token)[:, None, None] & keep[0][:, None, None]

    def add(number: int, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        if number:
            return args, kwargs
        if mask.dtype == torch.bool:
            dtype = case.parts.lm.dtype
            closed = torch.zeros(mask.shape, dtype=dtype)
            mask = closed.masked_fill(~mask, torch.finfo(dtype).min)
        return args, {
            **kwargs,
            "attention_mask": mask + visual * math.log(image.before / image.after),
        }

    def run() -> torch.Tensor:
        with references.before_layers(case.parts.layers, add):
            return case.logits(case.single)[:, -1]

    return references.masked(case.parts, run, keep)


def test_it_reaches_the_attention(taken):
    if is_void(taken, "masked"):
        pytest.skip(VOID[taken.model_type, "masked"])
    with compress(taken.model, SIZES, budget="50%") as c:
        short = taken.logits(taken.single)[:, -1]
    with compress(taken.model, "divprune", budget="50%"):
        without = taken.logits(taken.single)[:, -1]
    allowed = TOLERANCES.get(taken.model_type, TOLERANCE)
    if not c.report().images[0].separators[0]:  # they are no visual tokens, and have no bias
        assert (short - biased(taken, c.report())).abs().max() < allowed
    assert (short - without).abs().max() > allowed


def test_with_a_cache_and_in_a_batch(taken):
    spec = "restore(divprune)"
    names = [name for name, _ in taken.parts.lm.named_buffers() if name.startswith("rotary_emb.")]
    if not any(name.endswith("inv_freq") for name in names):
        with pytest.raises(UnsupportedModelError, match="no rotary frequencies: give distance=Fal"):
            compress(taken.model, spec, budget="50%")
        spec = "restore(divprune, distance=False)"
    with compress(taken.model, spec, budget="50%"):
        together = taken.generate(taken.both)
        alone = [taken.generate(inputs) for inputs in taken.alone]
        if not is_void(taken, "cached"):
            again = taken.generate(taken.single, use_cache=False)
            assert torch.equal(alone[0].sequences, again.sequences)
            assert apart(alone[0].logits, again.logits) < TOLERANCE
    if not is_void(taken, "batch"):
        allowed = TOLERANCES.get(taken.model_type, TOLERANCE)
        for row, one in enumerate(alone):
            mine = [step[row] for step in together.logits]
            assert apart(mine, [step[0] for step in one.logits]) < allowed
