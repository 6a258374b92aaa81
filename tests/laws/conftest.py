"""The command, models to ask, and adapters that are broken on purpose."""

from __future__ import annotations

import json

import pytest
import shrink
import transformers
from processor_folders import KINDS, SPECIAL, WORDS, write_folder
from subject_models import QWEN2, SIGLIP, build
from typer.testing import CliRunner

import vlmcompress
from vlmcompress.cli import app
from vlmcompress.models import loading
from vlmcompress.patches.families.registry import FAMILIES

IDS = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}


@pytest.fixture
def check(monkeypatch, tiny_llava, tiny_qwen):
    """Run the command in this process; gives its exit code and the results by law.

    The built-in models are those of the session.
    """
    load, built_in = loading.load, {"tiny-llava": tiny_llava, "tiny-qwen": tiny_qwen}

    def loaded(name, **options):
        return built_in[name] if name in built_in else load(name, **options)

    monkeypatch.setattr(loading, "load", loaded)

    def run(*arguments):
        result = CliRunner().invoke(app, ["check", *map(str, arguments), "--json"])
        assert result.exit_code in (0, 1), result.output
        return result.exit_code, json.loads(result.stdout)

    return run


@pytest.fixture
def break_family(monkeypatch):
    """Put another adapter in the place of a registered one."""
    return lambda name, family: monkeypatch.setitem(FAMILIES._entries, name, family)


@pytest.fixture(scope="session")
def onevision_folder(tmp_path_factory):
    """A tiny LLaVA-OneVision with random weights, whose rows end with newlines."""
    folder = write_folder(tmp_path_factory.mktemp("onevision"), KINDS["llava_onevision"])
    model = build(
        "LlavaOnevision",
        vision_config=SIGLIP | {"image_size": 32, "patch_size": 8},
        text_config=QWEN2,
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
        image_grid_pinpoints=[[32, 32], [32, 64]],
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generic_folder(tmp_path_factory):
    """A tiny GLM-4.1V with random weights, for which there is no adapter of its own."""
    folder = write_folder(tmp_path_factory.mktemp("glm4v"), KINDS["glm4v"])
    config = shrink.tiny_config("glm4v")
    config.vision_config.patch_size, config.vision_config.image_size = 4, 32
    config.image_token_id, config.video_token_id = IDS["<|image_pad|>"], IDS["<|video_pad|>"]
    config.image_start_token_id = IDS["<|vision_start|>"]
    config.image_end_token_id = IDS["<|vision_end|>"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shrink, "tiny_config", lambda name: config)
        model = shrink.build("glm4v")
    assert "glm4v" not in FAMILIES.names()
    model.save_pretrained(folder)
    assert isinstance(vlmcompress.load(folder)[0], transformers.Glm4vForConditionalGeneration)
    return folder
