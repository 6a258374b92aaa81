"""With SDPA the model is shown other masks, or none, and gives the same."""

from __future__ import annotations

import pytest
from scope import NO_SDPA
from shortening import TOLERANCE, apart, reduced


@pytest.mark.rotating(axis="method", by="case", count=1)
@pytest.mark.parametrize("method", ["divprune", "cut"])
def test_sdpa_gives_what_eager_gives(case, method):
    if case.model_type in NO_SDPA:
        with pytest.raises(ValueError, match="does not support"):
            case.model.set_attn_implementation("sdpa")
        pytest.skip("it has no SDPA")

    def outputs():
        with reduced(case, method) as c:
            prompts = [case.logits(inputs)[:, -1] for inputs in (case.single, case.both)]
            assert c.report().engaged
            return prompts, case.generate(case.both)

    prompts, generated = outputs()
    try:
        case.model.set_attn_implementation("sdpa")
        others, again = outputs()
    finally:
        case.model.set_attn_implementation("eager")
    assert apart(prompts, others) < TOLERANCE
    assert apart(generated.logits, again.logits) < TOLERANCE
