"""Tokens that enter at a middle layer, for every model type that lets anything in there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_case import Case, Inputs
from references import masked
from scope import CUTS, TOLERANCES
from shortening import TOLERANCE, apart, is_void

from vlmcompress.api import compress
from vlmcompress.errors import CompositionError, UnsupportedModelError

LAYER = 1
"""Some of these models have two layers only."""
PLAIN = {"full_attention", "sliding_attention", "chunked_attention"}


def closed_and_reset(case: Case, report: Any, inputs: Inputs) -> torch.Tensor:
    """Last-token logits of the bare model that gives placeholders what they came with again."""
    came: list[torch.Tensor] = []
    visual = inputs["input_ids"] == case.token

    def before(number: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                came.append(hidden.clone())
                return None
            at = visual.view(*visual.shape, *(1 for _ in hidden.shape[2:]))
            hidden = torch.where(at, came[0], hidden)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    handles = [
        case.parts.layers[n].register_forward_pre_hook(before(n), with_kwargs=True)
        for n in (0, LAYER)
    ]
    try:
        return masked(case, report, inputs)
    finally:
        for handle in handles:
            handle.remove()


def refused(case: Case) -> bool:
    return bool(
        case.model_type not in CUTS or set(case.kinds) - PLAIN or case.parts.family.deepstack
    )


def test_entering_equals_closing_and_resetting(case):
    if refused(case):
        with (
            pytest.raises((CompositionError, UnsupportedModelError)) as error,
            compress(case.model, f"inject(layer={LAYER})"),
        ):
            pass
        assert "\n" not in str(error.value)
        return
    late = {}
    with compress(case.model, f"inject(layer={LAYER})") as c:
        for name, inputs in (("single", case.single), ("both", case.both)):
            late[name] = case.logits(inputs)[:, -1], c.report()
        if not is_void(case, "cached"):
            cached, again = case.generate(case.single), case.generate(case.single, use_cache=False)
            assert torch.equal(cached.sequences, again.sequences)
            assert apart(cached.logits, again.logits) < TOLERANCE
    allowed = TOLERANCES.get(case.model_type, TOLERANCE)
    for inputs, bare, (logits, report) in (
        (case.single, case.bare, late["single"]),
        (case.both, case.bare_both, late["both"]),
    ):
        assert all(image.enters == LAYER for image in report.images)
        assert (logits - closed_and_reset(case, report, inputs)).abs().max() < allowed
        assert (logits - bare[:, -1]).abs().amax(1).min() > 10 * TOLERANCE
