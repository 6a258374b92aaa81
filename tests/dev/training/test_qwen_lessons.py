"""What tiny-qwen is told in training: labels of tokens, and where a question should look."""

import numpy as np
import pytest

from dev.training.llava.data import label
from dev.training.llava.packed_questions import SEGMENT_LENGTH
from dev.training.qwen.data import (
    OWNER,
    TOKEN_FIELDS,
    TOKEN_SIDE,
    label_clip,
    picture_labels,
)
from dev.training.qwen.lessons import (
    BEFORE,
    CLIP_SEGMENTS,
    clip_owners,
    make_hops,
    make_links,
    make_targets,
    pack_words,
    picture_owners,
    pose_clip,
)
from dev.training.qwen.model import IDS, SPECIAL
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, ask_clip
from vlmcompress.eval.worlds.clips import FRAMES_PER_STEP, STEPS, make_clip, render_clip
from vlmcompress.eval.worlds.world import PLACES, make_scene, render


def test_labels_of_a_clip_say_what_is_where_in_every_step():
    fields = list(TOKEN_FIELDS)
    for seed in range(30):
        clip = make_clip(seed)
        labels = label_clip(clip, render_clip(clip)[1])
        for step in range(STEPS):
            row = dict(zip(fields, labels[step], strict=False))
            shown = []
            for index, actor in enumerate(clip.actors):
                ends = [actor.at(step * FRAMES_PER_STEP + frame) for frame in (0, 1)]
                if None in ends:
                    continue
                x, y = (sum(getattr(end, axis) for end in ends) / 2 for axis in "xy")
                token = int(y) // 16 * TOKEN_SIDE + int(x) // 16
                shown.append(token)
                for field, value in (
                    ("shape", actor.thing.shape),
                    ("color", actor.thing.color),
                    ("motion", actor.direction),
                ):
                    found = row[field][token]
                    assert (TOKEN_FIELDS[field][found - 1] if found > 0 else None) == value
                assert labels[step, OWNER, token] == index + 1
            assert sorted(np.flatnonzero(row["middle"] == 1)) == sorted(shown)


def test_labels_of_a_picture_are_merged_from_its_patches():
    for seed in range(20):
        scene = make_scene(seed)
        labels = picture_labels(label(scene, render(scene)[1])[None])[0]
        for thing, owner in zip(scene.objects, picture_owners(scene), strict=True):
            token = int(thing.y) // 16 * TOKEN_SIDE + int(thing.x) // 16
            named = {
                field: words[labels[row, token] - 1] if labels[row, token] > 0 else None
                for row, (field, words) in enumerate(TOKEN_FIELDS.items())
            }
            looks = (named["shape"], named["color"], named["size"], named["glyph"])
            assert looks == (thing.shape, thing.color, thing.size, thing.glyph)
            assert named["motion"] is None
            assert labels[OWNER, token] == owner == PLACES.index(thing.place) + 1
        assert (labels[list(TOKEN_FIELDS).index("middle")] == 1).sum() == len(scene.objects)


def looked_at(targets, clip, labels, number):
    """Actors, 0 for the start of the text, that target `number` points to."""
    share = targets.wanted[number].numpy()
    assert share.sum() == pytest.approx(1)
    tokens = np.flatnonzero(share[len(BEFORE) : len(BEFORE) + labels.shape[-1]])
    found = {int(labels[targets.rows[number], OWNER, token]) for token in tokens}
    return found | ({0} if share[0] else set())


def flat(clip):
    """Labels of a clip in the order of its tokens, [1, ROWS, 144]."""
    return label_clip(clip, render_clip(clip)[1]).transpose(1, 0, 2).reshape(1, OWNER + 1, -1)


def test_attention_is_wanted_on_the_actors_that_a_question_is_about():
    kinds = set()
    for seed in range(60):
        clip = make_clip(seed)
        labels = flat(clip)
        for kind in CLIP_KINDS:
            question = ask_clip(clip, kind, np.random.default_rng(seed))
            if question is None:
                continue
            targets = make_targets([clip_owners(clip)], [[question]], labels)
            first, last = (
                looked_at(targets, clip, labels, number) for number in (0, len(targets.rows) - 1)
            )
            about = {index + 1 for index in question.about}
            if kind == "order":
                assert first == {question.about[0] + 1}
                assert last == {question.about[-1] + 1}
                hops = make_hops([clip_owners(clip)], [[question]], labels)
                assert len(hops.rows) == len(question.about) - 1
                if len(hops.rows):
                    assert looked_at(hops, clip, labels, 0) == {question.about[1] + 1}
            else:
                assert first == last == about | ({0} if kind == "counting" else set())
            kinds.add(kind)
    assert kinds == set(CLIP_KINDS)


def test_every_event_looks_back_at_the_one_before_it():
    checked = 0
    for seed in range(1, 60, 2):
        clip = make_clip(seed)
        labels = flat(clip)
        links = make_links([clip], labels)
        for number, query in enumerate((links.queries - len(BEFORE)).tolist()):
            actor = clip.actors[int(labels[0, OWNER, query]) - 1]
            earlier = [other.step for other in clip.actors if other.step < actor.step]
            expected = {
                index + 1
                for index, other in enumerate(clip.actors)
                if earlier and other.step == max(earlier)
            }
            assert looked_at(links, clip, labels, number) == (expected or {0})
            checked += 1
    assert checked > 50
    assert len(make_links([make_clip(0)], flat(make_clip(0))).rows) == 0


def test_all_questions_about_clips_fit_a_segment():
    for seed in range(80):
        questions = pose_clip(make_clip(seed), np.random.default_rng(seed), [1.0] * 3)
        if questions:
            batch = pack_words([questions])
            assert batch.tokens.shape == (1, CLIP_SEGMENTS, SEGMENT_LENGTH)
            assert (batch.wanted == IDS[SPECIAL["end"]]).sum() == CLIP_SEGMENTS
