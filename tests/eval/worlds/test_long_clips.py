"""Long clips show what they say, and every question has the one right answer."""

import re
from collections import Counter

import numpy as np
import pytest
from task_files import load

from vlmcompress.eval.worlds.long_clips import (
    LENGTHS,
    LONG_CLIP_KINDS,
    ask_long_clip,
    make_long_clip,
    render_long_clip,
)
from vlmcompress.eval.worlds.world import COLORS, HELD_OUT_SEEDS, NUMBERS, SHAPES

SEEDS = range(200)
COLOR, SHAPE = "|".join(COLORS), "|".join(SHAPES)
SINGULAR = {("crosses" if shape == "cross" else f"{shape}s"): shape for shape in SHAPES}


def solve(clip, text):
    """The answer, worked out from the words of the question and from what is shown when."""
    events = sorted(clip.events, key=lambda event: event.second)
    if match := re.fullmatch(r"(?:what|which object) appears (first|last) \?", text):
        return events[0 if match[1] == "first" else -1].thing.name
    if match := re.fullmatch(
        r"how often does a (.+) appear \?|how many times do (.+) appear \?", text
    ):
        shape = match[1] or SINGULAR[match[2]]
        return NUMBERS[Counter(event.thing.shape for event in events)[shape] - 1]
    match = re.fullmatch(
        rf"(?:in which second|at which second of the video) does the "
        rf"(?:({COLOR}) )?({SHAPE}|object) appear \?",
        text,
    )
    color, shape = match.groups()
    (second,) = (
        event.second
        for event in events
        if color in (None, event.thing.color) and shape in ("object", event.thing.shape)
    )
    return str(second + 1)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("kind", LONG_CLIP_KINDS)
def test_every_answer_is_the_right_one_and_no_answer_is_always_right(frames, kind):
    answers = []
    for seed in SEEDS:
        clip = make_long_clip(frames, seed)
        for wording in (0, 1):
            rng = np.random.default_rng(seed)
            question = ask_long_clip(clip, kind, rng, wording)
            if question is not None:
                assert question.answer == solve(clip, question.text)
                answers.append(question.answer)
    assert len(answers) > len(SEEDS)
    assert Counter(answers).most_common(1)[0][1] < 0.5 * len(answers)


@pytest.mark.parametrize("frames", LENGTHS)
def test_events_are_apart_and_inside_the_clip(frames):
    for seed in SEEDS:
        clip = make_long_clip(frames, seed)
        seconds = [event.second for event in clip.events]
        assert clip.frames == frames
        assert 2 <= len(seconds) <= 5
        assert seconds == sorted(set(seconds))
        assert 0 <= seconds[0] <= seconds[-1] < frames / 4


def test_objects_are_seen_in_the_first_half_of_their_second_only():
    clip = make_long_clip(64, 5)
    frames = render_long_clip(clip).astype(float)
    assert np.array_equal(render_long_clip(clip), frames)
    busy = {event.second for event in clip.events}
    still = np.median(frames, axis=0)  # every object is gone most of the time
    for number, frame in enumerate(frames):
        second, place = divmod(number, 4)
        changed = (np.abs(frame - still).max(-1) > 25).mean()
        assert (changed > 0.005) == (second in busy and place < 2), number


def test_a_task_for_each_length_whose_clips_know_their_times():
    for frames in LENGTHS:
        task = load(f"clips-{frames}")
        (first, *_), again = task.samples(6, 0), task.samples(6, 0)
        (video,) = first.load()
        assert video.frames.shape == (frames, 96, 96, 3)
        assert video.times == [frame / 4 for frame in range(frames)]
        assert [s.kind for s in again] == [*LONG_CLIP_KINDS] * 2
        assert {s.wording for s in again} == {0, 1}
    assert make_long_clip(64, HELD_OUT_SEEDS.start) != make_long_clip(64, 0)
