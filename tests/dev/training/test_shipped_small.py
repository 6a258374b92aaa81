"""small-llava and small-clip as they ship: ordinary folders of trained models."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from asking import accuracy, questions
from clip_answers import cls_attention, nearest_patch, same_tower, told_apart
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import vlmcompress
from dev.pages import committed_results as committed
from dev.training.sample_files import POSTERS
from dev.training.small.data import OWNER, label_poster
from vlmcompress.eval.tasks.registry import load_tasks
from vlmcompress.eval.worlds.posters.draw import draw_poster, render_poster
from vlmcompress.eval.worlds.posters.poster import make_poster
from vlmcompress.eval.worlds.posters.questions import ask_poster, held_out_posters
from vlmcompress.eval.worlds.scene import HELD_OUT_SEEDS
from vlmcompress.models.names import ASSETS
from vlmcompress.patches.signals.text_tower import find

FIRST = HELD_OUT_SEEDS.start + 500_000
KINDS = tuple(load_tasks(["posters"])[0].kinds)
"""All but count, which it has not learnt."""


@pytest.fixture(scope="module")
def small_llava():
    return vlmcompress.load("small-llava", device="cpu")


@pytest.fixture(scope="module")
def small_clip():
    folder = ASSETS / "small_clip"
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def asked():
    """Other questions than those of the figures in training.json."""
    return questions("posters", 30 * len(KINDS))


def commonest_answers():
    """What one would say to a question of each kind about training posters without looking."""
    said = {kind: Counter() for kind in KINDS}
    for seed in range(600):
        for kind in KINDS:
            question = ask_poster(make_poster(seed), kind, np.random.default_rng([seed, 9]))
            if question is not None:
                said[kind][question.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in said.items()}


def test_the_committed_results_are_of_these_weights():
    weights = (ASSETS / "small_llava" / "model.safetensors").read_bytes()
    told = committed.results("small-llava")["provenance"]["weights_sha256"]
    assert told == hashlib.sha256(weights).hexdigest()


def test_both_are_small_and_kept_in_half_precision():
    folders = [ASSETS / "small_llava", ASSETS / "small_clip"]
    assert sum(p.stat().st_size for folder in folders for p in folder.iterdir()) <= 24 * 2**20
    for folder in folders:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as weights:
            kinds = {weights.get_tensor(name).dtype for name in list(weights.keys())}
        assert kinds == {torch.float16}


def test_it_loads_every_weight_as_float32_and_has_576_visual_tokens():
    model, info = AutoModelForImageTextToText.from_pretrained(
        ASSETS / "small_llava", output_loading_info=True
    )
    assert not any(info.values())
    assert model.dtype == torch.float32
    config = model.config
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")


def test_it_answers_some_questions(small_llava, asked):
    assert accuracy(small_llava, asked[: 2 * len(KINDS)], "full")["all"] >= 0.75


def test_it_answers_about_the_samples(small_llava):
    for name, sample in POSTERS.items():
        with Image.open(ASSETS / "samples" / f"{name}.png") as picture:
            assert np.array_equal(np.asarray(picture), render_poster(make_poster(sample.seed))[0])
            found = vlmcompress.ask(*small_llava, picture.copy(), sample.question, "full")
        assert found.answer == sample.answer


@pytest.mark.slow
def test_it_answers_held_out_questions_and_needs_the_picture(small_llava, asked):
    full = accuracy(small_llava, asked, "full")
    assert full["all"] >= 0.9
    assert min(full.values()) >= 0.75
    blind = accuracy(small_llava, asked, "text-only")["all"]
    assert blind <= full["all"] - 0.35
    guesses = commonest_answers()
    guessed = np.mean([guesses[sample.kind] == sample.answers[0] for sample in asked])
    assert guessed - 0.05 <= blind <= guessed + 0.1
    assert accuracy(small_llava, asked, "random(seed=0)", "25%")["all"] <= full["all"] - 0.1


def test_cls_attention_prefers_items(small_llava):
    model, processor = small_llava
    paid, chance = [], []
    for poster, _ in held_out_posters(8, FIRST, KINDS):
        pixels = processor.image_processor(images=draw_poster(poster), return_tensors="pt")
        row = cls_attention(model.model.vision_tower, pixels["pixel_values"])
        inside = label_poster(poster, render_poster(poster)[1])[OWNER].ravel() > 0
        paid.append(row[inside].sum() / row.sum())
        chance.append(inside.mean())
    assert np.mean(paid) > 2 * np.mean(chance)


def test_clip_has_the_vision_tower_of_llava(small_llava, small_clip):
    assert same_tower(small_clip[0], small_llava[0])


def test_clip_finds_the_patches_that_a_question_is_about(small_clip):
    hits, chance = [], []
    for poster, question in held_out_posters(4 * len(KINDS), FIRST, KINDS):
        if question.kind not in ("color", "shape", "place", "reading"):
            continue
        labels = label_poster(poster, render_poster(poster)[1])[OWNER].ravel()
        mine = labels == question.about[0] + 1
        hits.append(mine[nearest_patch(*small_clip, question.text, draw_poster(poster))])
        chance.append(mine.mean())
    assert np.mean(hits) > 0.6
    assert np.mean(chance) < 0.1


def test_clip_tells_posters_apart_by_what_they_show(small_clip):
    posters = [make_poster(seed) for seed in range(FIRST, FIRST + 16)]
    texts = [
        " , ".join(list(dict.fromkeys(item.name for item in poster.items))[:6])
        for poster in posters
    ]
    assert told_apart(*small_clip, texts, [draw_poster(poster) for poster in posters]) > 0.5


def test_its_text_tower_is_found(small_llava):
    tower = small_llava[0].model.vision_tower
    find(None, tower, tower.config.hidden_size)  # raises where no tower that ships fits


def test_a_method_keeps_as_many_of_576_as_is_asked(small_llava):
    poster, question = next(iter(held_out_posters(1, FIRST, KINDS)))
    found = vlmcompress.ask(*small_llava, draw_poster(poster), question.text, "cdpruner", 144)
    assert (found.before, found.after) == (576, 144)
