"""tiny-llava and tiny-clip as they ship: ordinary folders of trained models."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import vlmcompress
from vlmcompress.eval.accuracy_table import Case, answer_all, chat_prompt, is_right
from vlmcompress.eval.tiny_data import label
from vlmcompress.eval.tiny_samples import SAMPLES
from vlmcompress.eval.worlds import (
    HELD_OUT_SEEDS,
    KINDS,
    Question,
    draw,
    held_out,
    make_scene,
    render,
)

ASSETS = Path(vlmcompress.__file__).parent / "assets"
FIRST = HELD_OUT_SEEDS.start + 500_000


@pytest.fixture(scope="module")
def asked():
    """Other questions than those of the accuracy table."""
    return [(draw(scene), question) for scene, question in held_out(12 * len(KINDS), FIRST)]


def accuracy(tiny_llava, asked, method, budget=None, **options):
    model, processor = tiny_llava
    outcome = answer_all(model, processor, asked, Case(method, budget, options), batch=42)
    right = is_right(outcome.answers, [question for _, question in asked])
    return sum(right) / len(right)


@pytest.mark.parametrize("name", ["tiny_llava", "tiny_clip", "tiny_qwen"])
def test_a_model_is_small(name):
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) <= 16 * 2**20


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tiny_llava", "accuracy.json"),
        ("tiny_qwen", "accuracy_qwen.json"),
    ],
)
def test_the_accuracy_table_is_of_these_weights(name, file):
    table = json.loads((Path(vlmcompress.__file__).parent / "eval" / file).read_text())
    weights = (ASSETS / name / "model.safetensors").read_bytes()
    assert table["provenance"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()


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


def test_it_answers_held_out_questions_and_needs_the_picture(tiny_llava, asked):
    full = accuracy(tiny_llava, asked, "full")
    assert full >= 0.9
    assert accuracy(tiny_llava, asked, "text-only") <= full - 0.35
    assert accuracy(tiny_llava, asked, "random", 36, seed=0) <= full - 0.1


def test_background_does_not_tell_the_answer(tiny_llava, asked):
    """Without the patches of objects the model is left to guess."""
    model, processor = tiny_llava
    scenes = list(held_out(len(asked), FIRST))
    right = []
    for start in range(0, len(asked), 42):
        part = asked[start : start + 42]
        inputs = processor(
            text=[chat_prompt(processor, question.text) for _, question in part],
            images=[picture for picture, _ in part],
            padding=True,
            return_tensors="pt",
        )
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        for row, (scene, _) in enumerate(scenes[start : start + 42]):
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
        (draw(make_scene(sample.seed)), Question(name, 0, sample.question, sample.answer))
        for name, sample in SAMPLES.items()
    ]
    model, processor = tiny_llava
    outcome = answer_all(model, processor, asked, Case("full", None, {}), batch=6)
    assert outcome.answers == [sample.answer for sample in SAMPLES.values()]


def test_cls_attention_prefers_objects(tiny_llava, asked):
    """Attention of CLS in the feature layer is a signal: more of it on objects than by chance."""
    model, processor = tiny_llava
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        paid, chance = [], []
        for scene, _ in held_out(30, FIRST):
            pixels = processor.image_processor(images=draw(scene), return_tensors="pt")[
                "pixel_values"
            ]
            with torch.no_grad():
                out = tower(pixels, output_attentions=True)
            row = torch.stack(out.attentions[-2:])[:, 0, :, 0, 1:].mean((0, 1)).numpy()
            inside = label(scene, render(scene)[1])[0] > 0
            paid.append(row[inside].sum() / row.sum())
            chance.append(inside.mean())
    finally:
        tower.set_attn_implementation(before)
    assert np.mean(paid) > 2 * np.mean(chance)


@pytest.fixture(scope="module")
def tiny_clip():
    folder = ASSETS / "tiny_clip"
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def test_clip_has_the_vision_tower_of_llava(tiny_llava, tiny_clip):
    llava = tiny_llava[0].model.vision_tower.state_dict()
    clip = tiny_clip[0].vision_model.state_dict()
    assert llava.keys() == clip.keys()
    assert all(torch.equal(llava[name], clip[name]) for name in llava)


def test_clip_finds_the_patches_that_a_question_is_about(tiny_clip):
    model, processor = tiny_clip
    hits, chance = [], []
    for scene, question in held_out(10 * len(KINDS), FIRST):
        if question.kind not in ("color", "shape", "place", "reading"):
            continue
        inputs = processor(
            text=[question.text], images=[draw(scene)], return_tensors="pt", padding=True
        )
        with torch.no_grad():
            text = model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).pooler_output
            vision = model.vision_model(inputs["pixel_values"], output_hidden_states=True)
            patches = model.vision_model.post_layernorm(vision.hidden_states[-2][:, 1:])
            alike = torch.cosine_similarity(model.visual_projection(patches)[0], text)
        row, column = divmod(int(alike.argmax()), 12)
        thing = scene.objects[question.about[0]]
        hits.append((row // 4, column // 4) == (thing.row, thing.column))
        chance.append(1 / len(scene.objects))
    assert np.mean(hits) > 0.8
    assert np.mean(chance) < 0.4


def test_clip_tells_pictures_apart_by_what_they_show(tiny_clip):
    model, processor = tiny_clip
    scenes = [make_scene(seed) for seed in range(FIRST, FIRST + 20)]
    texts = [" , ".join(thing.name for thing in scene.objects[:6]) for scene in scenes]
    inputs = processor(
        text=texts, images=[draw(scene) for scene in scenes], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        match = model(**inputs).logits_per_text
    assert (match.argmax(-1) == torch.arange(len(scenes))).float().mean() > 0.5
