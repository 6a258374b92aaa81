"""Which implementation of an op runs."""

import importlib.util

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.backend import VARIABLE, forced, use_triton
from vlmcompress.ops.proving import decision
from vlmcompress.ops.select import farthest_point

X = torch.ones(1)


class OnCard:
    is_cuda = True

    def __init__(self, device="cuda:0"):
        self.device = device


def test_auto_asks_what_is_known_of_the_kernel_on_that_card(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    asked = []

    def pays(op, like, sizes):
        asked.append((op, like, sizes))
        return op == "take"

    monkeypatch.setattr(decision, "kernel_pays", pays)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    here = OnCard()
    assert use_triton("take", here, OnCard(), N=3)
    assert not use_triton("pool", here)
    assert asked == [("take", here, {"N": 3}), ("pool", here, {})]
    assert not use_triton("take", here, X)
    assert not use_triton("take", here, OnCard("cuda:1"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not use_triton("take", here)
    assert len(asked) == 2


def test_torch_is_never_triton(monkeypatch):
    monkeypatch.setattr(decision, "kernel_pays", lambda *_: pytest.fail("it was asked"))
    monkeypatch.setenv(VARIABLE, "torch")
    assert not use_triton("take", OnCard())


def test_a_block_is_stronger_than_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "torch")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with forced("triton"):
        assert use_triton("take", X)
        with forced("torch"):
            assert not use_triton("take", X)
        assert use_triton("take", X)
    assert not use_triton("take", X)


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
