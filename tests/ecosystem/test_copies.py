"""Copies, files and the life time of a wrapped model."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlmcompress.api import Compression, compress
from vlmcompress.errors import UnsupportedCallError, VLMCompressError


def hooks(model: Any) -> int:
    modules = list(model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_a_deep_copy_is_compressed_by_itself(case):
    bare, short = case.wanted()
    case.ids()
    clean = hooks(case.model)
    c = case.compress()
    case.ids()
    twin = copy.deepcopy(case.model)
    handle = Compression.of(twin)
    assert handle.model is twin
    assert not handle.report().images  # it has not been asked anything
    c.remove()
    assert torch.equal(case.ids(), bare)
    assert torch.equal(case.ids(twin), short)
    assert handle.report().engaged
    handle.remove()
    assert torch.equal(case.ids(twin), bare)
    assert hooks(twin) == hooks(case.model) == clean
    assert vars(twin).keys() == vars(case.model).keys()


def test_a_deep_copy_never_calls_the_first_model(case):
    calls = []
    with case.compress() as c:
        case.logits()  # keeps tensors with gradients off, and a trace
        seen = c.report().images[0].kept
        twin = copy.deepcopy(case.model)
        for module in case.model.modules():
            module.register_forward_pre_hook(lambda module, args: calls.append(module))
        case.inputs["pixel_values"] = case.inputs["pixel_values"].flip(-1)
        case.ids(twin)
        assert calls == []
        assert c.report().images[0].kept == seen
        case.logits()
        assert calls


def test_a_deep_copy_of_the_handle_comes_with_a_copy_of_the_model(case):
    bare, short = case.wanted()
    with case.compress() as c:
        twin = copy.deepcopy(c)
        assert twin.model is not case.model
    with twin:
        assert torch.equal(case.ids(twin.model), short)
        model = twin.model
    assert torch.equal(case.ids(model), bare)


def test_the_handle_of_a_wrapped_model_can_be_had_again(case):
    bare = case.wanted()[0]
    with pytest.raises(VLMCompressError, match="is not compressed"):
        Compression.of(case.model)
    case.compress()
    with pytest.raises(VLMCompressError, match=r"Compression\.of\(model\)"):
        case.compress()
    Compression.of(case.model).remove()
    assert torch.equal(case.ids(), bare)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_wrapped_model_is_not_pickled_but_refused_in_one_line_by(case, dump):
    twin = copy.deepcopy(case.model)
    case.compress()
    case.compress(model=twin)
    case.ids(twin)
    for model in (case.model, twin):
        with pytest.raises(UnsupportedCallError, match=r"save_pretrained\(\)"):
            dump(model, io.BytesIO())


def test_the_weights_of_a_wrapped_model_can_be_saved_as_ever(case):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    with case.compress():
        after = case.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_save_pretrained_writes_what_the_bare_model_writes(case, tmp_path):
    bare, short = case.wanted()
    case.model.save_pretrained(tmp_path / "bare")
    with case.compress():
        case.ids()
        case.model.save_pretrained(tmp_path / "wrapped")
        assert torch.equal(case.ids(), short)
    files = sorted(path.name for path in (tmp_path / "bare").iterdir())
    assert "model.safetensors" in files
    assert files == sorted(path.name for path in (tmp_path / "wrapped").iterdir())
    for name in files:
        assert (tmp_path / "bare" / name).read_bytes() == (tmp_path / "wrapped" / name).read_bytes()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "wrapped").eval()
    assert torch.equal(case.ids(again), bare)
    with pytest.raises(VLMCompressError, match="is not compressed"):
        Compression.of(again)


def test_a_removed_handle_keeps_its_report_but_not_the_model(case):
    with case.compress() as c:
        case.ids()
        assert c.model is case.model
    model = weakref.ref(case.model)
    case.model = None
    gc.collect()
    assert model() is None
    assert c.report().engaged
    with pytest.raises(VLMCompressError, match="holds no model any more"):
        _ = c.model


def test_a_wrapped_model_can_be_collected_as_soon_as_nobody_holds_it_or_its_handle(case):
    c = case.compress()
    case.ids()
    model = weakref.ref(case.model)
    case.model = None
    gc.collect()
    assert model() is c.model
    del c
    gc.collect()
    assert model() is None


def test_a_failed_compress_holds_nothing(case):
    with pytest.raises(VLMCompressError):
        compress(case.model, "divprune", budget=-1)
    model = weakref.ref(case.model)
    case.model = None
    gc.collect()
    assert model() is None
