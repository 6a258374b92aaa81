"""tiny-llava and tiny-clip as they ship: ordinary folders of trained models."""

import hashlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import accuracy, answers, questions
from clip_answers import cls_attention, nearest_patch, same_tower, told_apart
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import vlmcompress
from dev.pages import committed_results as committed
from dev.training.llava.data import label
from dev.training.sample_files import SAMPLES
from vlmcompress.eval.run.cases import Case
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.eval.worlds.world import HELD_OUT_SEEDS, KINDS, draw, held_out, make_scene, render
from vlmcompress.prompts import prepare

ASSETS = Path(vlmcompress.__file__).parent / "assets"
FIRST = HELD_OUT_SEEDS.start + 500_000


@pytest.fixture(scope="module")
def asked():
    """Other questions than those of the committed results."""
    return questions("pictures", 12 * len(KINDS))


@pytest.mark.parametrize("name", ["tiny_llava", "tiny_clip", "tiny_qwen"])
def test_a_model_is_small(name):
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) <= 16 * 2**20


@pytest.mark.parametrize("name", list(committed.FAMILIES))
def test_the_committed_results_are_of_these_weights(name):
    weights = (ASSETS / name.replace("-", "_") / "model.safetensors").read_bytes()
    told = committed.results(name)["provenance"]["weights_sha256"]
    assert told == hashlib.sha256(weights).hexdigest()


@pytest.mark.slow
def test_auto_classes_load_it_in_a_fresh_process():
    code = (
        "import sys; from transformers import AutoModelForImageTextToText as M, AutoProcessor as P;"
        "m = M.from_pretrained(sys.argv[1]); p = P.from_pretrained(sys.argv[1]);"
        "print(type(m).__name__, type(p).__name__, m.dtype, p.tokenizer.padding_side)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ASSETS / "tiny_llava")], capture_output=True, text=True
    )
    expected = ["LlavaForConditionalGeneration", "LlavaProcessor", "torch.float32", "left"]
    assert done.stdout.split() == expected, done.stderr


def test_it_loads_every_weight_and_has_the_promised_size():
    model, info = AutoModelForImageTextToText.from_pretrained(
        ASSETS / "tiny_llava", output_loading_info=True
    )
    assert not any(info.values())
    config = model.config
    assert config.vision_config.num_hidden_layers >= 6
    assert config.text_config.num_hidden_layers >= 6
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 >= 144
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")


@pytest.mark.slow
def test_it_answers_held_out_questions_and_needs_the_picture(tiny_llava, asked):
    full = accuracy(tiny_llava, asked, "full")["all"]
    assert full >= 0.9
    assert accuracy(tiny_llava, asked, "text-only")["all"] <= full - 0.35
    assert accuracy(tiny_llava, asked, "random(seed=0)", "25%")["all"] <= full - 0.1


@pytest.mark.slow
def test_background_does_not_tell_the_answer(tiny_llava):
    """Without the patches of objects the model is left to guess."""
    model, processor = tiny_llava
    scenes = list(held_out(12 * len(KINDS), FIRST))
    right = []
    for start in range(0, len(scenes), 42):
        part = scenes[start : start + 42]
        prompts = [([draw(scene)], question.text) for scene, question in part]
        inputs = prepare(model, processor, prompts)
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        for row, (scene, _) in enumerate(part):
            covered = torch.from_numpy(render(scene)[1].max(0).ravel() > 0)
            image = (inputs["input_ids"][row] == model.config.image_token_id).nonzero()[:, 0]
            inputs["attention_mask"][row, image[covered]] = 0
        with torch.no_grad():
            best = model(**inputs, position_ids=position_ids).logits[:, -1].argmax(-1)
        words = processor.batch_decode(best[:, None])
        right += [
            word == question.answer.split()[0]
            for word, (_, question) in zip(words, part, strict=True)
        ]
    assert np.mean(right) < 0.4


def test_it_answers_about_the_samples(tiny_llava):
    asked = [
        Sample(name, 0, "", 0, one.question, (one.answer,), partial(_drawn, one.seed))
        for name, one in SAMPLES.items()
    ]
    assert answers(tiny_llava, asked, Case("full", None)) == [
        sample.answer for sample in SAMPLES.values()
    ]


def _drawn(seed):
    return [draw(make_scene(seed))]


def test_cls_attention_prefers_objects(tiny_llava):
    """Attention of CLS in the feature layer is a signal: more of it on objects than by chance."""
    model, processor = tiny_llava
    paid, chance = [], []
    for scene, _ in held_out(30, FIRST):
        pixels = processor.image_processor(images=draw(scene), return_tensors="pt")["pixel_values"]
        row = cls_attention(model.model.vision_tower, pixels)
        inside = label(scene, render(scene)[1])[0] > 0
        paid.append(row[inside].sum() / row.sum())
        chance.append(inside.mean())
    assert np.mean(paid) > 2 * np.mean(chance)


@pytest.fixture(scope="module")
def tiny_clip():
    folder = ASSETS / "tiny_clip"
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def test_clip_has_the_vision_tower_of_llava(tiny_llava, tiny_clip):
    assert same_tower(tiny_clip[0], tiny_llava[0])


def test_clip_finds_the_patches_that_a_question_is_about(tiny_clip):
    hits, chance = [], []
    for scene, question in held_out(10 * len(KINDS), FIRST):
        if question.kind not in ("color", "shape", "place", "reading"):
            continue
        row, column = divmod(nearest_patch(*tiny_clip, question.text, draw(scene)), 12)
        thing = scene.objects[question.about[0]]
        hits.append((row // 4, column // 4) == (thing.row, thing.column))
        chance.append(1 / len(scene.objects))
    assert np.mean(hits) > 0.8
    assert np.mean(chance) < 0.4


def test_clip_tells_pictures_apart_by_what_they_show(tiny_clip):
    scenes = [make_scene(seed) for seed in range(FIRST, FIRST + 20)]
    texts = [" , ".join(thing.name for thing in scene.objects[:6]) for scene in scenes]
    assert told_apart(*tiny_clip, texts, [draw(scene) for scene in scenes]) > 0.5
