"""Computations that ask the device: together, in turn, and with the checks that are due."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops import host_copies
from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.ops.host_copies import on_cpu
from vlmcompress.ops.questions import abreast, answered


class Noting(Checks):
    """Remembers what was asked at once."""

    def __init__(self):
        super().__init__()
        self.read_at_once = []

    def read(self, values):
        self.read_at_once.append(len(values))
        return super().read(values)


def counting(start, steps):
    """Asks `steps` times for the number that it is at."""
    at = torch.tensor(start)
    for _ in range(steps):
        at = at + (yield at)
    return int(at)


def listing():
    first, second = yield [torch.tensor([1, 2]), torch.tensor([True])]
    return first.tolist(), second.tolist()


def test_the_nth_questions_are_asked_at_once():
    checks = Noting()
    several = [counting(1, 3), counting(10, 0), listing(), counting(5, 1)]
    assert answered(abreast(several), checks) == [8, 10, ([1, 2], [True]), 10]
    assert checks.read_at_once == [4, 1, 1]


def test_what_asks_nothing_waits_for_nothing():
    checks = Noting()
    assert answered(abreast([counting(2, 0), counting(3, 0)]), checks) == [2, 3]
    assert answered(abreast([]), checks) == []
    assert checks.read_at_once == []


def test_groups_within_groups():
    def outer():
        return sum((yield from abreast([counting(1, 2), counting(2, 1)])))

    checks = Noting()
    assert answered(abreast([outer(), counting(7, 2)]), checks) == [4 + 4, 28]
    assert checks.read_at_once == [3, 2]


def test_checks_are_settled_with_the_first_question():
    checks = Checks()
    checks.expect(torch.tensor(False), lambda: VLMCompressError("due"))
    with pytest.raises(VLMCompressError, match="due"):
        answered(counting(1, 1), checks)
    assert answered(counting(1, 1), checks) == 2


def test_copies_of_all_dtypes_and_shapes_at_once(monkeypatch):
    """The bytes go as one; a device is pretended by calling the CPU another name."""
    given = [
        torch.tensor(True),
        torch.tensor([[1.5, -torch.inf], [0.1, 2.0]], dtype=torch.float64).T,
        torch.arange(7)[1::2],
        torch.tensor([1.1, 2.2, 3.3], dtype=torch.bfloat16),
        torch.zeros(0, 3),
        torch.tensor([False, True, True]),
    ]

    class Elsewhere:
        """A tensor whose device is not "cpu"."""

        def __init__(self, tensor):
            self.tensor, self.device = tensor, torch.device("meta")
            self.dtype, self.shape = tensor.dtype, tensor.shape

        def detach(self):
            return self.tensor

    copied = []
    cat = torch.cat
    monkeypatch.setattr(host_copies.torch, "cat", lambda raw: copied.append(1) or cat(raw))
    found = on_cpu([Elsewhere(one) for one in given])
    assert copied == [1]
    for one, copy in zip(given, found, strict=True):
        assert copy.dtype == one.dtype
        assert copy.shape == one.shape
        assert torch.equal(copy, one)
    here = torch.ones(2)
    assert on_cpu([here])[0] is here
    assert on_cpu([]) == []
