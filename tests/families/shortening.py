"""How the matrix shortens a model, and what it takes for equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from model_case import Case
from scope import CUTS, VOID

from vlmcompress.api import compress
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.fastv import FastV

TOLERANCE = 1e-4
STATEFUL = ("linear_attention", "conv", "mamba", "hybrid")
"""Kinds of layers that carry a state along the tokens, so that masking is not dropping."""


@dataclass(frozen=True)
class EverySecond(FastV):
    """Looks at nothing, so that only the cut itself is tested."""

    name: ClassVar[str] = "every-second"

    def score(self, view: LayerView) -> torch.Tensor:
        places = torch.arange(len(view.visual))
        return (places * 7919 % 13).float() + places * 1e-3


def reduced(case: Case, method: str) -> Any:
    """A compressed model at half of its tokens."""
    if method != "cut":
        return compress(case.model, method, budget="50%")
    if case.model_type not in CUTS:
        pytest.skip("projector stage only")
    return compress(case.model, EverySecond(k=case.first_cut, ratio=0.5))


def maskable(case: Case) -> bool:
    """Whether tokens act on others through attention only."""
    stateful = any(kind.startswith(STATEFUL) for kind in case.kinds)
    return not (stateful or is_void(case, "masked"))


def is_void(case: Case, law: str) -> bool:
    """Whether the bare model does not keep a law; the table must say so, and why."""
    return (case.model_type, law) in VOID


def apart(one: Any, other: Any) -> float:
    """The largest difference of the logits of all steps."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
