"""Signals of vision towers, for every type whose tower is described: what the eager tower does."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from bare_towers import BareTower, look_at
from clip_case import ClipCase
from looker import every_layer, looker, per_image
from model_case import Case, case_of
from scope import CLIPS_HERE, DESCRIBED, DOZEN, mended

from vlmcompress.api import compress
from vlmcompress.patches.signals.tower_hooks import AT_FEATURE, PER_LAYER

TOLERANCE = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore::vlmcompress.errors.UntestedModelWarning")


@pytest.fixture(
    scope="module",
    params=[t if t in DOZEN else pytest.param(t, marks=pytest.mark.slow) for t in DESCRIBED],
)
def case(request: Any) -> Any:
    with warnings.catch_warnings(), mended(request.param):
        warnings.simplefilter("ignore")
        yield case_of(request.param)


def signals_of(case: Case) -> list[str]:
    given = case.parts.family.encoder.gives(case.parts.base)
    return sorted(given & (AT_FEATURE.keys() | PER_LAYER.keys()))


def expected(bare: BareTower, signal: str, layer: int) -> torch.Tensor:
    """[places] or [places, D]."""
    if signal.endswith("keys"):
        return bare.keys[layer]
    return bare.rows[layer] if signal.endswith("cls_attention") else bare.received[layer]


def check(shown: list[Any], bare: BareTower, signals: list[str]) -> None:
    """Compare all that the tower gives, picture by picture."""
    last = len(bare.keys) - 1
    for signal in signals:
        found = per_image(shown, signal)
        assert len(found) == len(bare.mixture)
        for mine, mixture in zip(found, bare.mixture, strict=True):
            for layer, values in (mine if signal in PER_LAYER else {last: mine}).items():
                right = mixture @ expected(bare, signal, layer)
                assert (values - right).abs().max() < TOLERANCE
                assert right.std() > 10 * TOLERANCE, "what is the same everywhere would pass"


def test_signals_are_those_of_eager_attention(case, monkeypatch):
    bare = look_at(case, case.both, "image", monkeypatch)
    signals = signals_of(case)
    assert "encoder_attention" in signals
    method, shown = looker(*signals, layers=every_layer)
    with compress(case.model, method, budget="50%"):
        case.logits(case.both)
    check(shown, bare, signals)


@pytest.mark.parametrize(
    "name",
    [
        name if name in DOZEN else pytest.param(name, marks=pytest.mark.slow)
        for name in DESCRIBED
        if name in CLIPS_HERE
    ],
)
def test_signals_of_clips_are_those_of_eager_attention(name, monkeypatch):
    case = ClipCase(name)
    bare = look_at(case, case.inputs, "video", monkeypatch)
    signals = signals_of(case)
    method, shown = looker(*signals, layers=every_layer)
    with compress(case.model, method, budget="50%"):
        case.logits(case.inputs)
    joined = replace(bare, mixture=[torch.cat(bare.mixture)])  # some give frames one by one
    check(shown, joined, signals)
