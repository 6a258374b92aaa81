"""tiny-qwen as it ships: an ordinary folder of a trained model that sees pictures and time."""

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from asking import accuracy, answers, questions
from transformers import AutoConfig, AutoModelForImageTextToText

import vlmcompress
from dev.training.qwen.model import (
    IDS,
    SPECIAL,
    ProcessorFiles,
    make_config,
    make_tokenizer,
)
from dev.training.sample_files import CLIPS
from vlmcompress.eval.run.cases import ONE_FRAME, Case
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS
from vlmcompress.eval.worlds.clips import FRAMES
from vlmcompress.eval.worlds.world import KINDS
from vlmcompress.media.video import read_video
from vlmcompress.prompts import prepare

FOLDER = Path(vlmcompress.__file__).parent / "assets" / "tiny_qwen"
SAMPLES = FOLDER.parent / "samples"


@pytest.fixture(scope="module")
def pictures():
    """Other questions than those of the committed results."""
    return questions("pictures", 12 * len(KINDS))


@pytest.fixture(scope="module")
def films():
    """Clips, likewise."""
    return questions("clips", 20 * len(CLIP_KINDS))


def test_it_loads_every_weight_and_training_wrote_down_which():
    _, info = AutoModelForImageTextToText.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values())
    told = Path(__file__).parents[3] / "dev" / "training" / "qwen" / "training.json"
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(told.read_text())["weights_sha256"] == digest


def test_the_files_beside_the_weights_are_what_the_code_writes(tmp_path, tiny_qwen):
    ProcessorFiles().save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (FOLDER / path.name).read_text(), path.name
    model, processor = tiny_qwen
    assert processor.tokenizer.get_vocab() == IDS == make_tokenizer().get_vocab()
    ours, shipped = make_config(), model.config
    for part in ("vision_config", "text_config"):
        told = {name: value for name, value in vars(getattr(ours, part)).items() if name[0] != "_"}
        found = vars(getattr(shipped, part))
        assert {name: found[name] for name in told if name != "dtype"} == {
            name: value for name, value in told.items() if name != "dtype"
        }
    assert model.generation_config.eos_token_id == IDS[SPECIAL["end"]]


def test_its_vision_tower_has_windowed_and_full_layers(tiny_qwen, pictures):
    model, processor = tiny_qwen
    config = AutoConfig.from_pretrained(FOLDER).vision_config
    assert 0 < len(config.fullatt_block_indexes) < config.depth
    chunks = []
    hooks = [
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs: chunks.append(len(kwargs["cu_seqlens"]) - 1), with_kwargs=True
        )
        for block in model.model.visual.blocks
    ]
    try:
        inputs = prepare(model, processor, [(pictures[0].load(), pictures[0].question)])
        with torch.inference_mode():
            model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    finally:
        for hook in hooks:
            hook.remove()
    # Nine places are nine windows.
    full = config.fullatt_block_indexes
    assert chunks == [1 if layer in full else 9 for layer in range(config.depth)]


@pytest.mark.slow
def test_it_answers_about_pictures_and_needs_the_right_tokens(tiny_qwen, pictures):
    full = accuracy(tiny_qwen, pictures, "full")
    assert full["all"] >= 0.95
    assert min(full.values()) >= 0.8
    assert accuracy(tiny_qwen, pictures, "text-only")["all"] <= full["all"] - 0.35
    assert accuracy(tiny_qwen, pictures, "random(seed=0)", "6.25%")["all"] <= full["all"] - 0.15


@pytest.mark.slow
def test_it_answers_about_clips_and_one_frame_is_not_enough(tiny_qwen, films):
    full, still = (accuracy(tiny_qwen, films, method) for method in ("full", ONE_FRAME))
    for kind in ("motion", "order"):
        assert full[kind] >= 0.8
        assert still[kind] <= full[kind] - 0.4
    assert full["counting"] >= 0.7
    assert still["counting"] <= full["counting"] - 0.1


def test_it_answers_about_the_sample_clips_read_from_disk(tiny_qwen):
    listing = json.loads((SAMPLES / "clips.json").read_text())
    asked = []
    for name, sample in CLIPS.items():
        path = SAMPLES / f"{name}.mp4"
        assert path.stat().st_size <= 200_000
        assert listing[path.name] == vars(sample)
        video = read_video(path)
        assert len(video.frames) == FRAMES
        load = partial(list, [video])
        asked.append(Sample(name, 0, "", 0, sample.question, (sample.answer,), load))
    for case in (Case("full", None), Case("divprune", "25%")):
        assert answers(tiny_qwen, asked, case) == [sample.answer for sample in CLIPS.values()]
