"""Long clips of the synthetic world: objects that come and go, for half a second each.

Frames are those of `clips`: 96x96 pixels, four a second. What happened first, how often an object
came, and in which second are told by the whole clip only. One whose frames are cut off, or sampled
more thinly than two a second, loses events.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlmcompress.eval.worlds.clip_questions import names_of
from vlmcompress.eval.worlds.clips import (
    FRAMES_PER_SECOND,
    FRAMES_PER_STEP,
    NOISE,
    plain_object,
)
from vlmcompress.eval.worlds.draw import add_object, make_canvas
from vlmcompress.eval.worlds.questions import NUMBERS, PLURALS, Question
from vlmcompress.eval.worlds.scene import IMAGE_SIZE, Object, Scene, make_scene, pick

LONG_CLIP_VERSION = 1
LENGTHS = (16, 64, 256)
"""Frames of the clips that tasks ask about."""

_MOST = len(NUMBERS)
"""Events of a clip."""
_AGAIN = 0.5
"""How often an event brings an object back."""


@dataclass(frozen=True)
class Event:
    """An object that is shown in the first half of one second.

    Attributes:
        thing: The object, and where it is.
        second: Which second of the clip, from 0.
    """

    thing: Object
    second: int


@dataclass(frozen=True)
class LongClip:
    """Events in the order of their seconds, before a background that does not change."""

    seed: int
    seconds: int
    events: tuple[Event, ...]
    backdrop: Scene

    @property
    def frames(self) -> int:
        """How many it has."""
        return self.seconds * FRAMES_PER_SECOND


def make_long_clip(frames: int, seed: int) -> LongClip:
    """Make the clip of `seed`: two to five events, at most one a second.

    Args:
        frames: Its length, a multiple of `FRAMES_PER_SECOND` and at least two seconds.
        seed: Of the world.
    """
    seconds = frames // FRAMES_PER_SECOND
    rng = np.random.default_rng([LONG_CLIP_VERSION, seed, frames, 12])
    backdrop = replace(make_scene(seed), objects=())
    count = int(rng.integers(2, min(_MOST, seconds) + 1))
    when = sorted(int(second) for second in rng.choice(seconds, size=count, replace=False))
    events: list[Event] = []
    for second in when:
        thing = plain_object(rng, int(rng.integers(9)))
        if events and rng.random() < _AGAIN:
            known = pick(rng, events).thing
            thing = replace(thing, shape=known.shape, color=known.color)
        events.append(Event(thing, second))
    return LongClip(seed, seconds, tuple(events), backdrop)


def render_long_clip(clip: LongClip) -> NDArray[np.uint8]:
    """Draw `clip`: its frames, [frames, 96, 96, 3]."""
    rng, empty = make_canvas(clip.backdrop)
    frames = np.empty((clip.frames, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    shown = {event.second: event.thing for event in clip.events}
    shades = rng.integers(-14, 15, size=(clip.seconds, 3))
    for frame in range(clip.frames):
        canvas, (second, place) = empty.copy(), divmod(frame, FRAMES_PER_SECOND)
        if second in shown and place < FRAMES_PER_STEP:
            add_object(canvas, shown[second], shades[second])
        canvas += NOISE * rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)
        frames[frame] = np.clip(canvas, 0, 255).astype(np.uint8)
    return frames


def ask_long_clip(
    clip: LongClip, kind: str, rng: np.random.Generator, wording: int
) -> Question | None:
    """Ask one random question of `kind`, one of `LONG_CLIP_KINDS`; None where there is none.

    `about` are indices of events.
    """
    return _ASKERS[kind](clip, rng, wording)


def _ask_first(clip: LongClip, rng: np.random.Generator, wording: int) -> Question:
    word, index = (("first", 0), ("last", len(clip.events) - 1))[int(rng.integers(2))]
    text = (f"what appears {word} ?", f"which object appears {word} ?")[wording]
    return Question("order", wording, text, clip.events[index].thing.name, (index,))


def _ask_often(clip: LongClip, rng: np.random.Generator, wording: int) -> Question:
    counts = Counter(event.thing.shape for event in clip.events)
    numbers = sorted(set(counts.values()))
    wanted = pick(rng, numbers)
    shape = pick(rng, sorted(shape for shape, count in counts.items() if count == wanted))
    about = tuple(i for i, event in enumerate(clip.events) if event.thing.shape == shape)
    text = (f"how often does a {shape} appear ?", f"how many times do {PLURALS[shape]} appear ?")
    return Question("often", wording, text[wording], NUMBERS[len(about) - 1], about)


def _ask_second(clip: LongClip, rng: np.random.Generator, wording: int) -> Question | None:
    names = names_of([event.thing for event in clip.events])
    once = [index for index, name in enumerate(names) if name is not None]
    if not once:
        return None
    index = pick(rng, once)
    text = (
        f"in which second does the {names[index]} appear ?",
        f"at which second of the video does the {names[index]} appear ?",
    )
    return Question("second", wording, text[wording], str(clip.events[index].second + 1), (index,))


_ASKERS = {"order": _ask_first, "often": _ask_often, "second": _ask_second}
LONG_CLIP_KINDS = tuple(_ASKERS)
