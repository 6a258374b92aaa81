"""Clips of the synthetic world: they show what they say, and no single frame tells the answer."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import vlmcompress
from dev.training.sample_files import CLIPS
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, ask_clip, held_out_clips
from vlmcompress.eval.worlds.clips import (
    DIRECTIONS,
    FRAMES,
    FRAMES_PER_STEP,
    make_clip,
    render_clip,
)
from vlmcompress.eval.worlds.world import COLORS, HELD_OUT_SEEDS, IMAGE_SIZE, NUMBERS, SHAPES
from vlmcompress.media.video import read_video

SEEDS = range(300)
COLOR, SHAPE = "|".join(COLORS), "|".join(SHAPES)


def seen(clip):
    """For every object that the clip shows: its looks, and its place in each frame."""
    tracks = defaultdict(dict)
    for frame in range(FRAMES):
        for index, actor in enumerate(clip.actors):
            thing = actor.at(frame)
            if thing is not None:
                tracks[index][frame] = (thing.x, thing.y)
    return tracks


def named(clip, words):
    """Indices of the actors that `words` may mean."""
    things = [actor.thing for actor in clip.actors]
    plurals = {("crosses" if shape == "cross" else f"{shape}s"): shape for shape in SHAPES}
    singular = plurals.get(words, words)
    if words in ("objects", "object"):
        return list(range(len(things)))
    if match := re.fullmatch(f"({COLOR}) object", words):
        return [i for i, thing in enumerate(things) if thing.color == match[1]]
    if match := re.fullmatch(f"({COLOR}) ({SHAPE})", words):
        return [i for i, thing in enumerate(things) if (thing.color, thing.shape) == match.groups()]
    assert singular in SHAPES, words
    return [i for i, thing in enumerate(things) if thing.shape == singular]


def direction(track):
    """Where the largest part of the way goes, from the first frame to the last."""
    (x0, y0), (x1, y1) = track[min(track)], track[max(track)]
    across, down = x1 - x0, y1 - y0
    assert max(abs(across), abs(down)) > 15
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def solve(clip, text):
    """All answers that a question may have, worked out from its words and what is seen when."""
    tracks = seen(clip)
    began = {index: min(track) for index, track in tracks.items()}
    motion = r"(?:which way|in which direction) does the (.+) move \?"
    if match := re.fullmatch(motion, text):
        return {direction(tracks[index]) for index in named(clip, match[1])}
    if match := re.fullmatch(r"how many (.+) appear \?|count the (.+) that appear \.", text):
        return {NUMBERS[len(named(clip, match[1] or match[2])) - 1]}
    order = r"(?:what|which object) appears (first|last|after|before)(?: the (.+))? \?"
    match = re.fullmatch(order, text)
    if match[2] is None:
        wanted = (min if match[1] == "first" else max)(began.values())
    else:
        (referent,) = named(clip, match[2])
        later = match[1] == "after"
        here = began[referent]
        others = [there for there in began.values() if there != here and (there > here) == later]
        wanted = (min if later else max)(others)
    return {clip.actors[i].thing.name for i, begin in began.items() if begin == wanted}


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_every_clip_question_has_exactly_one_answer_and_it_is_the_right_one(kind):
    asked = 0
    for seed in SEEDS:
        clip = make_clip(seed)
        question = ask_clip(clip, kind, np.random.default_rng(seed))
        if question is not None:
            assert solve(clip, question.text) == {question.answer}, (seed, question)
            asked += 1
    assert asked > len(SEEDS) * 0.35


def test_the_picture_of_a_clip_never_changes_unnoticed():
    # As for pictures: other bytes are another world, CLIP_VERSION must go up.
    total = sum(int(render_clip(make_clip(seed))[0].astype(np.int64).sum()) for seed in range(8))
    assert total == pytest.approx(217_975_001, rel=1e-4)


def test_what_is_drawn_moves_as_the_clip_says():
    checked = Counter()
    for seed in range(0, 30, 2):
        clip = make_clip(seed)
        covers = render_clip(clip)[1]
        rows, columns = np.mgrid[:12, :12]
        for index, actor in enumerate(clip.actors):
            weights = covers[:, index]
            total = weights.sum(axis=(1, 2))
            y = (weights * rows).sum(axis=(1, 2)) / total
            x = (weights * columns).sum(axis=(1, 2)) / total
            across, down = DIRECTIONS[actor.direction] if actor.direction else (0, 0)
            assert np.sign(np.round((x[-1] - x[0]) / 2)) == across
            assert np.sign(np.round((y[-1] - y[0]) / 2)) == down
            checked[actor.direction] += 1
    assert set(checked) == {*DIRECTIONS, None}


def test_only_what_a_clip_is_about_changes_between_frames():
    for seed in range(8):
        clip = make_clip(seed)
        frames, covers = render_clip(clip)
        empty = covers.max(axis=(0, 1)) == 0
        change = np.abs(np.diff(frames.astype(int), axis=0)).max(axis=(0, 3))
        per_patch = change.reshape(12, 8, 12, 8).max(axis=(1, 3))
        assert per_patch[empty].max() < 25
        assert per_patch[covers.max(axis=(0, 1)) > 0.9].size == 0 or per_patch.max() > 40


def test_objects_stay_in_the_picture_and_apart():
    for seed in SEEDS:
        clip = make_clip(seed)
        for frame in range(FRAMES):
            shown = [thing for actor in clip.actors if (thing := actor.at(frame)) is not None]
            for number, thing in enumerate(shown):
                for middle in (thing.x, thing.y):
                    assert thing.radius - 1 <= middle <= IMAGE_SIZE - thing.radius + 1
                for other in shown[:number]:
                    gap = np.hypot(thing.x - other.x, thing.y - other.y)
                    assert gap > thing.radius + other.radius


def test_the_middle_frame_says_nothing_of_the_direction_but_the_first_one_would():
    middles, firsts = defaultdict(list), defaultdict(list)
    for seed in range(0, 1600, 2):
        for actor in make_clip(seed).actors:
            if actor.direction is not None:
                for frame, places in ((FRAMES // 2, middles), (0, firsts)):
                    thing = actor.at(frame)
                    places[actor.direction].append((thing.x, thing.y))
    for places, most, least in ((middles, 5.0, 0.0), (firsts, 99.0, 15.0)):
        means = {name: np.mean(where, axis=0) for name, where in places.items()}
        assert most > np.abs(means["left"] - means["right"]).max() > least
        assert most > np.abs(means["up"] - means["down"]).max() > least


def test_no_frame_shows_more_than_two_events_and_every_event_lasts_one_step():
    for seed in range(1, 400, 2):
        clip = make_clip(seed)
        tracks = seen(clip)
        assert len(tracks) == len(clip.actors)
        frames = Counter(frame for track in tracks.values() for frame in track)
        assert max(frames.values()) <= 2
        for track in tracks.values():
            assert len(track) == FRAMES_PER_STEP
            assert min(track) % FRAMES_PER_STEP == 0


def test_clip_answers_are_balanced():
    answers = defaultdict(Counter)
    for seed in range(1200):
        clip = make_clip(seed)
        for kind in CLIP_KINDS:
            question = ask_clip(clip, kind, np.random.default_rng(seed))
            if question is not None:
                answers[kind][question.answer] += 1
    share = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    assert set(answers["motion"]) == set(DIRECTIONS)
    assert share["motion"] < 0.3
    assert set(answers["counting"]) == set(NUMBERS)
    assert share["counting"] < 0.4
    assert share["order"] < 0.06


def test_held_out_clips_take_kinds_and_wordings_in_turn_and_refuse_training_seeds():
    drawn = list(held_out_clips(12))
    assert all(clip.seed in HELD_OUT_SEEDS for clip, _ in drawn)
    assert len({clip.seed for clip, _ in drawn}) == 12
    assert Counter((q.kind, q.wording) for _, q in drawn) == {
        (kind, wording): 2 for kind in CLIP_KINDS for wording in (0, 1)
    }
    with pytest.raises(ValueError, match="held-out"):
        next(held_out_clips(1, first_seed=5))


def test_the_same_seed_gives_the_same_clip_and_another_one_does_not():
    frames = [render_clip(make_clip(seed))[0] for seed in (7, 7, 9)]
    assert (frames[0] == frames[1]).all()
    assert (frames[0] != frames[2]).any()


def test_sample_clips_are_held_out_and_what_the_code_draws():
    folder = Path(vlmcompress.__file__).parent / "assets" / "samples"
    listing = json.loads((folder / "clips.json").read_text())
    assert sorted(listing) == sorted(path.name for path in folder.glob("*.mp4"))
    assert {"motion", "order", "counting"} == {
        kind_of(sample.question) for sample in CLIPS.values()
    }
    for name, sample in CLIPS.items():
        assert listing[f"{name}.mp4"] == asdict(sample)
        assert sample.seed in HELD_OUT_SEEDS
        clip = make_clip(sample.seed)
        assert solve(clip, sample.question) == {sample.answer}, name
        shipped = np.stack(read_video(folder / f"{name}.mp4").frames).astype(int)
        drawn = render_clip(clip)[0].astype(int)
        # Encoding blurs colours at edges; another frame would differ far more often.
        assert np.abs(shipped - drawn).mean() < 4
        assert np.mean(np.abs(shipped - drawn) > 60) < 0.01


def kind_of(text):
    """What a question is about, from its words."""
    if "move" in text:
        return "motion"
    return "counting" if text.startswith(("how many", "count")) else "order"
