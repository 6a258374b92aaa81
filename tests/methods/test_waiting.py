"""Methods hardly ever wait for the device: only where the content decides how many there are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from shown import Layer, asked_of, make, methods, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from vlmcompress.methods import DecoderMethod, Reducer, Selector
from vlmcompress.tokens import Grid

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten._unique2}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
MOST = {"fastvid": 17, "flashvid-merge": 14}
"""They deal counts out on the CPU, where nothing waits. Others: a check of each signal and
round."""


class Waiting(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        op = func.overloadpacket
        masks = op in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if op in WAITS or masks:
            self.found[op.__name__] += 1
        return func(*args, **(kwargs or {}))


def waits(act, *given):
    with Waiting() as waiting:
        act(*given)
    return waiting.found


def test_waits_are_counted():
    mask = torch.tensor([True, False])
    assert waits(lambda: bool(mask.any())).total() == 1
    assert waits(lambda: mask.nonzero()).total() == 1
    assert waits(lambda: torch.zeros(2)[mask]).total() == 1
    assert waits(lambda: torch.zeros(2).sum()).total() == 0


@pytest.mark.parametrize("name", methods((Selector, Reducer)))
def test_a_choice_waits_for_its_checks_only(name, tmp_path_factory):
    method = make(name, tmp_path_factory)
    shown = asked_of(method, tokens(Grid(1, 12, 12)))
    act = method.reduce if isinstance(method, Reducer) else method.select
    found = waits(act, shown, method.keep_count(shown.grid, 36))
    assert found.total() <= MOST.get(name, 10)


@pytest.mark.parametrize("name", methods(DecoderMethod))
def test_a_cut_waits_for_its_checks_only(name, tmp_path_factory):
    method = make(name, tmp_path_factory)
    assert waits(method.keep, Layer(Grid(1, 12, 12)), 36).total() <= 4
