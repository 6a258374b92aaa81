"""Models by name, by folder and by hub id, and each way that can go wrong."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from vlmcompress.errors import UnknownNameError, UnsupportedModelError, VLMCompressError
from vlmcompress.loading import ASSETS, BUILT_IN, load, resolve


@pytest.fixture
def tiny_folder(tmp_path):
    """A copy of the built-in model in which a test may break something."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (ASSETS / BUILT_IN["tiny-llava"]).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_built_in(tiny_llava):
    model, processor = tiny_llava
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert not model.training
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


def test_folder_and_dtype(tiny_folder):
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = load(tiny_folder, device="cpu", dtype=dtype)
        assert model.dtype == torch.bfloat16


def test_keyword_arguments_reach_the_model():
    model, _ = load("tiny-llava", device="cpu", attn_implementation="eager")
    assert model.config.text_config._attn_implementation == "eager"


def test_resolve(tmp_path):
    assert resolve("tiny-llava") == str(ASSETS / "tiny_llava")
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == str(tmp_path)
    assert resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("name", ["tiny-lava", "tinyllava", "Tiny-LLaVA"])
def test_unknown_name_suggests_the_nearest(name):
    with pytest.raises(UnknownNameError, match=rf"'{name}': did you mean 'tiny-llava'\?"):
        load(name)


def test_wrong_paths(tmp_path):
    with pytest.raises(VLMCompressError, match="does not exist"):
        resolve(tmp_path / "nothing")
    with pytest.raises(VLMCompressError, match=r"has no config\.json"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VLMCompressError, match="is a file"):
        resolve(tmp_path / "config.json")


def test_unknown_dtype_and_device():
    with pytest.raises(UnknownNameError, match=r"dtype 'floot32': did you mean 'float32'\?"):
        load("tiny-llava", dtype="floot32")
    with pytest.raises(VLMCompressError, match="unknown device 'gpu'"):
        load("tiny-llava", device="gpu")
    with pytest.raises(VLMCompressError, match="'cuda:99' is not there"):
        load("tiny-llava", device="cuda:99")


def test_hub_that_cannot_be_reached(monkeypatch):
    def fail(name, **kwargs):
        raise OSError(f"We couldn't connect to the hub to load {name}.\nCheck your connection.")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", fail)
    with pytest.raises(VLMCompressError) as caught:
        load("someone/some-model")
    message = str(caught.value)
    assert message.startswith("cannot load 'someone/some-model' from the Hugging Face Hub: We ")
    assert "tiny-llava" in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, OSError)


def test_shared_options_reach_the_processor(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        AutoProcessor, "from_pretrained", lambda name, **kwargs: seen.update(processor=kwargs)
    )
    monkeypatch.setattr(
        AutoModelForImageTextToText,
        "from_pretrained",
        lambda name, **kwargs: seen.update(model=kwargs) or torch.nn.Module(),
    )
    load("a/b", device="cpu", revision="v1", attn_implementation="sdpa")
    assert seen["processor"] == {"revision": "v1"}
    assert seen["model"] == {"revision": "v1", "attn_implementation": "sdpa", "dtype": "auto"}


def test_damaged_weights(tiny_folder):
    weights = tiny_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VLMCompressError, match="cannot load the model in folder") as caught:
        load(tiny_folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_damaged_config(tiny_folder):
    (tiny_folder / "config.json").write_text("{")
    with pytest.raises(VLMCompressError, match="cannot load the model in folder"):
        load(tiny_folder, device="cpu")


def test_text_model(tiny_folder):
    (tiny_folder / "config.json").write_text(json.dumps(LlamaConfig().to_dict()))
    with pytest.raises(UnsupportedModelError, match="does not answer questions about images"):
        load(tiny_folder, device="cpu")
