"""Ctrl-C and failures at any moment: the model can be compressed again, no hook stays behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

import vlmcompress
from vlmcompress.api import Compression
from vlmcompress.errors import CompositionError, VLMCompressError
from vlmcompress.laws.snapshots import snapshot

OURS = os.path.dirname(vlmcompress.__file__)
WITHIN = ("api.py", "patches/engine.py", "patches/call/", "patches/hooks/", "feature_call.py")
"""Where something is put on or off, entered or left."""
REGISTERING = ("register_forward_pre_hook", "register_forward_hook")


def _watched(frame: Any) -> bool:
    file, name = frame.f_code.co_filename, frame.f_code.co_name
    if name in REGISTERING or file.endswith("torch/utils/hooks.py"):
        return True
    return ("vlmcompress/" in file or "/patches/" in file) and any(p in file for p in WITHIN)


@contextmanager
def interrupted(at: int | None) -> Iterator[list[int]]:
    """Ctrl-C at one of the moments at which Python looks for it: a call, or the end of one in C."""
    moments = [0]

    def look(frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_return") and _watched(frame):
            moments[0] += 1
            if moments[0] == at:
                raise KeyboardInterrupt

    before = sys.unraisablehook

    def lost(unraisable: Any) -> None:
        """Python drops what a generator raises that is being thrown away, a real Ctrl-C as well."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            before(unraisable)

    sys.unraisablehook = lost
    sys.setprofile(look)
    try:
        yield moments
    finally:
        sys.setprofile(None)
        sys.unraisablehook = before


def whole_life(case: Any, method: str, budget: str) -> None:
    with vlmcompress.compress(case.model, method, budget) as c:
        case.ids(max_new_tokens=2, min_new_tokens=2)
        case.logits()
        c.report()


def moments(case: Any, method: str, budget: str, count: int) -> Iterator[int]:
    whole_life(case, method, budget)  # what is worked out once in a process takes moments, too
    with interrupted(None) as found:
        whole_life(case, method, budget)
    assert found[0] > count
    return iter(range(1, found[0] + 1, max(1, found[0] // count)))


@pytest.mark.parametrize("count", [16, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "budget"),
    [("tome+fastv(k=1)", "50%"), ("divprune+fastv(k=1)", "0.9 flops")],
)
def test_ctrl_c_at_many_moments(small, method, budget, count):
    bare, alone = small.ids(), snapshot(small.model)
    with vlmcompress.compress(small.model, method, budget):
        short = small.ids()
    stopped = 0
    for at in moments(small, method, budget, count):
        with suppress(KeyboardInterrupt), interrupted(at) as passed:
            whole_life(small, method, budget)
        stopped += passed[0] >= at  # also where Python dropped it: that life went on to its end
        with suppress(VLMCompressError):  # Ctrl-C can keep a `with` from removing: so does the user
            Compression.of(small.model).remove()
        assert snapshot(small.model) == alone, at
        if at % 5 == 0:
            assert torch.equal(small.ids(), bare)
            with vlmcompress.compress(small.model, method, budget):
                assert torch.equal(small.ids(), short), at
    assert stopped > 0.9 * count


@pytest.mark.parametrize("call", ["ids", "logits"])
def test_ctrl_c_in_a_call_leaves_nothing_of_it_behind(small, call):
    decoder = small.model.model.language_model
    words = torch.randn(1, 8, decoder.config.hidden_size)
    alone = decoder(inputs_embeds=words).last_hidden_state

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with vlmcompress.compress(small.model, "divprune+fastv(k=1)", 6) as c:
        now, clean = c._engine.now, None
        for stop in (False, True):
            handle = decoder.layers[-1].register_forward_hook(interrupt) if stop else None
            with suppress(KeyboardInterrupt):
                getattr(small, call)()
            if handle is not None:
                handle.remove()
            state = {name: value for name, value in vars(now).items() if name != "trace"}
            assert clean in (None, state)
            clean = state
        assert not c._engine.shared._inside
        assert torch.equal(decoder(inputs_embeds=words).last_hidden_state, alone)


@pytest.mark.parametrize("call", ["ids", "logits"])
def test_a_failed_prefill_under_a_cost_leaves_no_budget_to_be_met(small, call):
    text = torch.tensor([[5, 6, 7]])
    wanted = small.model(input_ids=text).logits
    pixels = small.inputs["pixel_values"]
    with vlmcompress.compress(small.model, "divprune", "0.9 flops") as c:
        small.inputs["pixel_values"] = pixels * float("nan")
        with pytest.raises(VLMCompressError, match="features must be finite"):
            getattr(small, call)()
        assert torch.equal(small.model(input_ids=text).logits, wanted)
        small.inputs["pixel_values"] = pixels
        small.ids()
        assert c.report().measured is not None


@pytest.mark.parametrize("again", [False, True])
def test_a_handle_is_used_once(small, again):
    bare = small.ids()

    def nested(c: Compression) -> None:
        with c:
            pass

    c = vlmcompress.compress(small.model, "divprune", 6)
    with c:
        if not again:
            with pytest.raises(CompositionError, match="in a with block already"):
                nested(c)
            with pytest.raises(CompositionError, match="in a with block already"):
                nested(Compression.of(small.model))
            assert not torch.equal(small.ids(), bare)
    with pytest.raises(CompositionError, match=r"was removed: call compress\(\) again"):
        nested(c)
    assert torch.equal(small.ids(), bare)


def _broken(step: int) -> Callable[..., Any]:
    count = [0]

    def before(self: Any, *given: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            raise KeyboardInterrupt
        return REAL(self, *given, **options)

    return before


REAL = torch.nn.Module.register_forward_pre_hook


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupted_compress_is_undone(small, monkeypatch, step):
    before = snapshot(small.model)
    monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", _broken(step))
    with pytest.raises(KeyboardInterrupt):
        vlmcompress.compress(small.model, "divprune+fastv(k=1)", 6)
    monkeypatch.undo()
    assert snapshot(small.model) == before
    vlmcompress.compress(small.model, "divprune+fastv(k=1)", 6).remove()
