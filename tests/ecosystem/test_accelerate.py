"""`device_map` with weights on the disk, and wrapping on either side of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import vlmcompress
from vlmcompress.models.names import ASSETS

FOLDER = ASSETS / "tiny_llava"


def device_map(model: Any) -> dict[str, str]:
    """Every other decoder layer on the disk, and what is around them here and there."""
    layers = range(len(model.model.language_model.layers))
    parts = {
        "vision_tower": "cpu",
        "multi_modal_projector": "disk",
        "language_model.embed_tokens": "cpu",
        "language_model.rotary_emb": "cpu",
        "language_model.norm": "disk",
    }
    parts |= {f"language_model.layers.{i}": "cpu" if i % 2 else "disk" for i in layers}
    return {f"model.{name}": place for name, place in parts.items()} | {"lm_head": "cpu"}


def on_disk(model: Any) -> bool:
    layer = model.model.language_model.layers[0]
    hooked = hasattr(layer.self_attn.q_proj, "_hf_hook")
    return hooked and all(weight.is_meta for weight in layer.parameters())


def _from_pretrained(case: Any, folder: Any) -> Any:
    plan = device_map(case.model)
    return vlmcompress.load(
        "tiny-llava", dtype="float32", device_map=plan, offload_folder=str(folder)
    )[0]


def _load_and_dispatch(case: Any, folder: Any) -> Any:
    checkpoint, offload = str(folder / "checkpoint.safetensors"), str(folder / "offload")
    # accelerate knows nothing of the older names that transformers translates while loading.
    save_file({name: value.clone() for name, value in case.model.state_dict().items()}, checkpoint)
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(FOLDER))
    return load_checkpoint_and_dispatch(
        model, checkpoint, device_map(case.model), offload_folder=offload, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("method", ["divprune", "fastv"])
@pytest.mark.parametrize("load", [_from_pretrained, _load_and_dispatch], ids=lambda f: f.__name__)
def test_wrapping_a_model_that_is_spread_over_memory_and_disk(case, tmp_path, load, method):
    bare, short = case.wanted(method)
    model = load(case, tmp_path)
    assert on_disk(model)
    assert torch.equal(case.ids(model), bare)
    with case.compress(method, model) as c:
        assert torch.equal(case.ids(model), short)
        assert c.report().engaged
    assert on_disk(model)
    assert torch.equal(case.ids(model), bare)


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_spreading_a_wrapped_model_over_memory_and_disk(case, tmp_path, method):
    bare, short = case.wanted(method)
    with case.compress(method) as c:
        model = dispatch_model(
            case.model, device_map(case.model), main_device="cpu", offload_dir=str(tmp_path)
        )
        assert on_disk(model)
        assert torch.equal(case.ids(model), short)
        assert c.report().engaged
    assert on_disk(model)
    assert torch.equal(case.ids(model), bare)


@pytest.mark.parametrize("where", ["auto", "cpu"])
def test_a_device_map_that_leaves_all_in_one_place(case, where):
    short = case.wanted()[1]
    model = vlmcompress.load("tiny-llava", dtype="float32", device_map=where)[0].to("cpu")
    with case.compress(model=model) as c:
        assert torch.equal(case.ids(model), short)
        assert c.report().engaged
