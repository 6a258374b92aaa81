"""Which implementation of an op runs."""

import importlib.util

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import backend
from vlmcompress.ops.backend import VARIABLE, use_triton
from vlmcompress.ops.select import farthest_point

X = torch.ones(1)


class OnCard:
    is_cuda = True


def test_auto_takes_torch_until_a_card_showed_that_a_kernel_pays(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not use_triton("take", OnCard())
    monkeypatch.setattr(backend, "PAYS", frozenset({"take"}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert use_triton("take", OnCard())
    assert not use_triton("pool", OnCard())
    assert not use_triton("take", OnCard(), X)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not use_triton("take", OnCard())


def test_torch_is_never_triton(monkeypatch):
    monkeypatch.setattr(backend, "PAYS", frozenset({"take"}))
    monkeypatch.setenv(VARIABLE, "torch")
    assert not use_triton("take", OnCard())


@pytest.mark.parametrize(
    ("choice", "interpreter", "installed", "words"),
    [
        ("cuda", "1", True, "auto, torch, triton"),
        ("triton", "1", False, "pip install triton"),
        ("triton", "0", True, "needs tensors on a CUDA device, take got cpu"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, choice, interpreter, installed, words):
    monkeypatch.setenv(VARIABLE, choice)
    monkeypatch.setenv("TRITON_INTERPRET", interpreter)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(VLMCompressError, match=words) as error:
        use_triton("take", X)
    assert "\n" not in str(error.value)


def test_the_variable_reaches_the_ops(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv(VARIABLE, "nonsense")
    with pytest.raises(VLMCompressError, match="nonsense"):
        farthest_point(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 3)
