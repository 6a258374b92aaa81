"""The synthetic world: repeatable, unambiguous, balanced."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlmcompress
from dev.training.sample_files import SAMPLES
from vlmcompress.eval.worlds.world import (
    COLORS,
    GLYPHS,
    HELD_OUT_SEEDS,
    IMAGE_SIZE,
    KINDS,
    NUMBERS,
    PLACES,
    SHAPES,
    TRAIN_SEEDS,
    ask,
    draw,
    held_out,
    make_scene,
    render,
)

SEEDS = range(300)
COLOR, SHAPE = "|".join(COLORS), "|".join(SHAPES)
PLACE = "|".join(sorted(PLACES, key=len, reverse=True))


def referents(scene, words):
    """Objects that `words` ("circle", "red circle", "red object", "object at the top") may mean."""
    if match := re.fullmatch(f"object at the ({PLACE})", words):
        return [o for o in scene.objects if cell(o) == match[1]]
    if match := re.fullmatch(f"({COLOR}) object", words):
        return [o for o in scene.objects if o.color == match[1]]
    if match := re.fullmatch(f"({COLOR}) ({SHAPE})", words):
        return [o for o in scene.objects if (o.color, o.shape) == match.groups()]
    assert words in SHAPES, words
    return [o for o in scene.objects if o.shape == words]


def cell(thing):
    """Place from where the object is drawn, not from what the scene says."""
    third = IMAGE_SIZE / 3
    return PLACES[int(thing.y // third) * 3 + int(thing.x // third)]


def singular(plural):
    return "cross" if plural == "crosses" else plural.removesuffix("s")


def solve(scene, text):
    """All answers that a question may have, worked out from its words alone."""
    asks_attribute = r"(?:what|which) (color|shape) (?:is|does) the (.+?)(?: have)? \?"
    asks_sign = r"what is written on the (.+) \?|which sign does the (.+) have \?"
    if match := re.fullmatch(asks_attribute, text):
        found = referents(scene, match[2])
        return {getattr(o, match[1]) for o in found}, found
    if match := re.fullmatch(r"(?:where|in which place) is the (.+) \?", text):
        found = referents(scene, match[1])
        return {cell(o) for o in found}, found
    if match := re.fullmatch(asks_sign, text):
        found = referents(scene, match[1] or match[2])
        return {o.glyph for o in found}, found
    if match := re.fullmatch(r"how many (.+) are there \?|count the (.+) \.", text):
        found = referents(scene, singular(match[1] or match[2]))
        return {NUMBERS[len(found) - 1]}, found
    if match := re.fullmatch(r"(?:is there|do you see) an? (.+) \?", text):
        found = referents(scene, match[1])
        return {"yes" if found else "no"}, found
    match = re.fullmatch(
        r"(?:is|does) the (.+?)(?: lie)? (left of|right of|above|below) the (.+) \?", text
    )
    assert match, text
    first, second = referents(scene, match[1]), referents(scene, match[3])
    holds = {
        {
            "left of": a.x < b.x,
            "right of": a.x > b.x,
            "above": a.y < b.y,
            "below": a.y > b.y,
        }[match[2]]
        for a in first
        for b in second
    }
    assert len(first) == len(second) == 1, text
    return {"yes" if value else "no" for value in holds}, first + second


def questions(kind, seeds=SEEDS):
    for seed in seeds:
        scene = make_scene(seed)
        question = ask(scene, kind, np.random.default_rng(seed))
        if question is not None:
            yield scene, question


def test_a_seed_gives_the_same_scene_and_the_same_bytes():
    for seed in (0, 1, 1_000_000):
        assert make_scene(seed) == make_scene(seed)
        assert draw(make_scene(seed)).tobytes() == draw(make_scene(seed)).tobytes()


def test_nothing_global_is_seeded_or_used():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make_scene(7)
    render(first)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.seed(6)  # noqa: NPY002
    assert make_scene(7) == first


def test_other_seeds_give_other_scenes_and_pictures():
    assert len({make_scene(seed).objects for seed in SEEDS}) == len(SEEDS)
    assert len({draw(make_scene(seed)).tobytes() for seed in range(50)}) == 50


def test_train_and_held_out_seeds_are_apart():
    assert not set(TRAIN_SEEDS) & set(HELD_OUT_SEEDS)
    assert all(scene.seed in HELD_OUT_SEEDS for scene, _ in held_out(50))


def test_objects_have_a_place_each_and_never_touch():
    for seed in SEEDS:
        scene = make_scene(seed)
        assert len({o.place for o in scene.objects}) == len(scene.objects)
        assert [cell(o) for o in scene.objects] == [o.place for o in scene.objects]
        _, cover = render(scene)
        assert ((cover > 0.5).sum(axis=0) <= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_exactly_its_answer(kind):
    asked = 0
    for scene, question in questions(kind):
        answers, found = solve(scene, question.text)
        assert answers == {question.answer}, (scene.seed, question)
        if kind not in ("count", "presence"):
            assert len(found) == len(question.about), question
        assert {scene.objects[i] for i in question.about} == set(found), question
        asked += 1
    assert asked > len(SEEDS) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_both_wordings_ask_the_same_in_other_words(kind):
    for seed in range(40):
        scene = make_scene(seed)
        pair = [ask(scene, kind, np.random.default_rng(seed), wording) for wording in (0, 1)]
        if pair[0] is None:
            assert pair[1] is None
            continue
        assert pair[0].text != pair[1].text
        assert (pair[0].answer, pair[0].about) == (pair[1].answer, pair[1].about)
        assert [question.wording for question in pair] == [0, 1]


def test_the_question_of_the_readme_is_asked():
    texts = {question.text for _, question in questions("color")}
    assert "what color is the circle ?" in texts


@pytest.mark.parametrize("kind", ["presence", "relation"])
def test_yes_and_no_are_balanced(kind):
    answers = Counter(question.answer for _, question in questions(kind, range(2000)))
    assert set(answers) == {"yes", "no"}
    assert 0.45 < answers["yes"] / answers.total() < 0.55


def test_absent_things_are_hard_to_tell():
    denied = 0
    for scene, question in questions("presence"):
        if question.answer == "no":
            color, shape = question.text.split()[-3:-1]
            assert any(o.color == color for o in scene.objects)
            assert any(o.shape == shape for o in scene.objects)
            denied += 1
    assert denied > 20


@pytest.mark.parametrize(
    ("kind", "options"),
    [("color", COLORS), ("shape", SHAPES), ("place", PLACES), ("reading", GLYPHS)],
)
def test_no_answer_is_a_good_guess(kind, options):
    answers = Counter(question.answer for _, question in questions(kind, range(2000)))
    assert set(answers) == set(options)
    assert max(answers.values()) < 1.7 * answers.total() / len(options)


def test_counts_reach_five():
    answers = Counter(question.answer for _, question in questions("count", range(2000)))
    assert set(answers) == set(NUMBERS)
    assert answers["one"] / answers.total() < 0.5


def test_the_wording_does_not_tell_the_answer():
    by_wording = defaultdict(Counter)
    for _, question in questions("presence", range(2000)):
        by_wording[question.wording][question.answer] += 1
    for answers in by_wording.values():
        assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_held_out_questions_take_kinds_and_wordings_in_turn():
    asked = [question for _, question in held_out(4 * len(KINDS))]
    counts = Counter((question.kind, question.wording) for question in asked)
    assert counts == {(kind, wording): 2 for kind in KINDS for wording in (0, 1)}
    again = [question for _, question in held_out(4 * len(KINDS))]
    assert again == asked


def test_samples_are_held_out_scenes_with_right_answers():
    for name, sample in SAMPLES.items():
        assert sample.seed in HELD_OUT_SEEDS
        assert solve(make_scene(sample.seed), sample.question)[0] == {sample.answer}, name


def test_one_sample_only_has_exactly_one_circle():
    counts = {
        name: [o.shape for o in make_scene(sample.seed).objects].count("circle")
        for name, sample in SAMPLES.items()
    }
    assert [name for name, count in counts.items() if count == 1] == ["street"]


def test_shipped_samples_are_what_the_code_draws():
    folder = Path(vlmcompress.__file__).parent / "assets" / "samples"
    listing = json.loads((folder / "samples.json").read_text())
    posters = json.loads((folder / "posters.json").read_text())
    assert sorted([*listing, *posters]) == sorted(path.name for path in folder.glob("*.png"))
    for name, sample in SAMPLES.items():
        assert listing[f"{name}.png"] == asdict(sample)
        shipped = np.asarray(Image.open(folder / f"{name}.png"), dtype=int)
        drawn = np.asarray(draw(make_scene(sample.seed)), dtype=int)
        assert np.abs(shipped - drawn).max() <= 2


def test_held_out_refuses_training_seeds():
    with pytest.raises(ValueError, match="held-out"):
        next(held_out(1, first_seed=5))
