"""Models by name, by folder and by hub id, and each way that can go wrong."""

import json
import sys
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from transformers import AutoModelForImageTextToText, LlamaConfig

from vlmcompress.errors import UnknownNameError, UnsupportedModelError, VLMCompressError
from vlmcompress.models import formats, processors, torchvision
from vlmcompress.models.loading import load
from vlmcompress.models.names import ASSETS, BUILT_IN, resolve
from vlmcompress.prompts import prepare


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


def test_built_in_for_videos():
    model, processor = load("tiny-qwen", device="cpu")
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert type(processor.video_processor).__name__ == "Qwen2VLVideoProcessor"


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


class Response:
    """The little of an HTTP response that the hub's errors look at."""

    headers: ClassVar = {}
    request = None
    status_code = 404


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand in for the hub; the value is what it answers, or the error that it raises."""
    answer = {"error": None, "asked": []}

    def model_info(self, name, **options):
        answer["asked"].append((name, options["revision"]))
        if answer["error"] is not None:
            raise answer["error"]

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return answer


@pytest.fixture
def auto(monkeypatch):
    """What processor and model are loaded with, in place of loading something."""
    seen = {}
    monkeypatch.setattr(
        processors, "load_processor", lambda name, **kwargs: seen.update(processor=kwargs)
    )
    monkeypatch.setattr(formats, "read_config", lambda where, options: {})
    monkeypatch.setattr(
        AutoModelForImageTextToText,
        "from_pretrained",
        lambda name, **kwargs: seen.update(model=kwargs) or torch.nn.Module(),
    )
    return seen


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("Name or service not known\nsecond line"), "Name or service not known"),
        (RepositoryNotFoundError("404 Client Error", response=Response()), "it has no such model"),
    ],
)
def test_hub_that_fails_is_asked_once(hub, auto, error, reason):
    hub["error"] = error
    with pytest.raises(VLMCompressError) as caught:
        load("someone/some-model")
    message = str(caught.value)
    assert message.startswith(
        f"cannot load 'someone/some-model' from the Hugging Face Hub: {reason}"
    )
    assert "tiny-llava" in message
    assert "\n" not in message
    assert caught.value.__cause__ is error
    assert auto == {}, "transformers, which would try again and again, was not called"


def test_what_is_cached_does_not_ask_the_hub(hub, auto, tmp_path):
    hub["error"] = OSError("no network")
    commit = "0" * 40
    folder = tmp_path / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    load("a/b", device="cpu", cache_dir=str(tmp_path))
    load("c/d", device="cpu", local_files_only=True)
    assert hub["asked"] == []


def test_shared_options_reach_the_processor(hub, auto):
    load("a/b", device="cpu", revision="v1", attn_implementation="sdpa")
    shared = {"revision": "v1", "trust_remote_code": False}
    assert auto["processor"] == shared
    assert auto["model"] == shared | {"attn_implementation": "sdpa", "dtype": "auto"}
    assert hub["asked"] == [("a/b", "v1")]


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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama"},
            "in LLaVA's own format .*llava-hf/llava-1.5-7b-hf",
        ),
        (
            {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava"},
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        ),
        (
            {
                "architectures": ["InternVLChatModel"],
                "model_type": "internvl_chat",
                "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
            },
            "in InternVL's own format .*OpenGVLab/InternVL3-2B-hf",
        ),
        (
            {
                "architectures": ["QWenLMHeadModel"],
                "model_type": "qwen",
                "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
            },
            "in Qwen-VL's own format .*Qwen/Qwen2-VL-2B-Instruct",
        ),
        (
            {"model_type": "minicpmv", "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"}},
            "comes with code of its own .*'minicpmv'.*ends in -hf",
        ),
    ],
)
def test_formats_of_their_own_are_told_by_the_config(tiny_folder, monkeypatch, config, words):
    """Nobody is asked on the terminal whether code may run."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on the terminal"))
    monkeypatch.setattr("signal.alarm", lambda *args: pytest.fail("waits for the terminal"))
    (tiny_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        load(tiny_folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_trusted_code_is_left_to_transformers(tiny_folder):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VLMCompressError, match="cannot load the model in folder"):
        load(tiny_folder, device="cpu", trust_remote_code=True)


def test_an_old_folder_gets_its_sizes_from_the_model(tiny_folder, tiny_llava):
    """Processors saved before transformers 4.45 say nothing of patches."""
    path = tiny_folder / "processor_config.json"
    settings = json.loads(path.read_text())
    sizes = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    for name in sizes:
        settings.pop(name, None)
    path.write_text(json.dumps(settings))
    model, processor = load(tiny_folder, device="cpu")
    whole = tiny_llava[1]
    assert [getattr(processor, name) for name in sizes] == [getattr(whole, name) for name in sizes]
    picture = Image.new("RGB", (90, 70))
    given, wanted = (prepare(model, one, [([picture], "what ?")]) for one in (processor, whole))
    assert torch.equal(given["input_ids"], wanted["input_ids"])


def test_a_torchvision_that_does_not_import_is_told_first(monkeypatch):
    """Importing our processors imports classes of transformers that hide the reason."""

    def broken():
        raise UnsupportedModelError("torchvision is installed but does not import")

    monkeypatch.setattr(torchvision, "check_torchvision", broken)
    monkeypatch.setitem(sys.modules, "vlmcompress.models.processors", None)
    with pytest.raises(UnsupportedModelError, match="torchvision is installed but does not import"):
        load("tiny-llava")


def test_what_validators_say_is_said_whole(tiny_folder):
    """Their first line is but a heading."""
    path = tiny_folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["hidden_size"] = "big"
    path.write_text(json.dumps(config))
    with pytest.raises(VLMCompressError, match=r"'hidden_size'.* expected int, got str") as caught:
        load(tiny_folder, device="cpu")
    assert "\n" not in str(caught.value)
