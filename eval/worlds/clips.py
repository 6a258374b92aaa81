"""Clips of the synthetic world: objects that move, or that appear one after the other.

A clip is eight frames of 96x96 pixels, two a step. It shows one of two themes, and neither can be
told from one frame: in "motion" up to four objects stay or move at an even pace, whose place in
the middle of the clip says nothing of the direction; in "events" every object is shown for one
step only.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlmcompress.eval.worlds.draw import add_object, make_canvas
from vlmcompress.eval.worlds.scene import (
    COLORS,
    IMAGE_SIZE,
    PATCH_SIZE,
    SHAPES,
    Object,
    Scene,
    make_object,
    make_scene,
    pick,
    repeat,
)

CLIP_VERSION = 1
FRAMES = 8
FRAMES_PER_STEP = 2
STEPS = FRAMES // FRAMES_PER_STEP
FRAMES_PER_SECOND = 4
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
THEMES = ("motion", "events")

_PIXELS_PER_FRAME = (2.6, 3.4)
_STILL_ODDS = 0.2
_GAP = 2.0
_ATTEMPTS = 60
NOISE = 2.0


@dataclass(frozen=True)
class Actor:
    """An object of a clip.

    Attributes:
        thing: The object, where it is in the middle of the clip.
        direction: One of `DIRECTIONS`, or None where it stays.
        pace: Pixels a frame.
        step: The only step in which it is shown, or None where it is shown throughout.
    """

    thing: Object
    direction: str | None = None
    pace: float = 0.0
    step: int | None = None

    def at(self, frame: int) -> Object | None:
        """The object as `frame` shows it."""
        if self.step is not None and self.step != frame // FRAMES_PER_STEP:
            return None
        if self.direction is None:
            return self.thing
        across, down = DIRECTIONS[self.direction]
        way = self.pace * (frame - (FRAMES - 1) / 2)
        return replace(self.thing, x=self.thing.x + across * way, y=self.thing.y + down * way)


@dataclass(frozen=True)
class Clip:
    """Actors before a background that does not change."""

    seed: int
    theme: str
    actors: tuple[Actor, ...]
    backdrop: Scene


def make_clip(seed: int) -> Clip:
    """Make the clip of `seed`; even seeds are about motion, odd ones about events."""
    rng = np.random.default_rng([CLIP_VERSION, seed, 10])
    backdrop = replace(make_scene(seed), objects=())
    theme = THEMES[seed % len(THEMES)]
    actors = _movers(rng) if theme == "motion" else _events(rng)
    return Clip(seed, theme, actors, backdrop)


def render_clip(clip: Clip) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw `clip`, and measure where its objects lie.

    Returns:
        The frames, [8, 96, 96, 3], and the share of each patch of 8x8 pixels that each object
        covers in each step (mean of its frames), [4, actors, 12, 12] in [0, 1].
    """
    rng, empty = make_canvas(clip.backdrop)
    frames = np.empty((FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    side = IMAGE_SIZE // PATCH_SIZE
    covers = np.zeros((STEPS, len(clip.actors), side, side), dtype=np.float32)
    shades = rng.integers(-14, 15, size=(len(clip.actors), 3))
    for frame in range(FRAMES):
        canvas = empty.copy()
        for index, actor in enumerate(clip.actors):
            thing = actor.at(frame)
            if thing is not None:
                cover = add_object(canvas, thing, shades[index])
                covers[frame // FRAMES_PER_STEP, index] += cover / FRAMES_PER_STEP
        # Compression of real clips leaves a different trace in every frame.
        canvas += NOISE * rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)
        frames[frame] = np.clip(canvas, 0, 255).astype(np.uint8)
    return frames, covers


def _movers(rng: np.random.Generator) -> tuple[Actor, ...]:
    """Two to four objects that never meet, at least one of them moving."""
    wanted = int(rng.integers(2, 5))
    actors: list[Actor] = []
    for _ in range(_ATTEMPTS):
        if len(actors) == wanted:
            break
        still = bool(actors) and rng.random() < _STILL_ODDS
        direction = None if still else pick(rng, tuple(DIRECTIONS))
        pace = 0.0 if still else float(rng.uniform(*_PIXELS_PER_FRAME))
        thing = plain_object(rng, int(rng.integers(9)))
        # The same margin for all directions, or the place would tell where an object can go.
        margin = thing.radius + _PIXELS_PER_FRAME[1] * (FRAMES - 1) / 2 + 1
        x, y = (float(value) for value in rng.uniform(margin, IMAGE_SIZE - margin, size=2))
        actor = Actor(replace(thing, x=x, y=y), direction, pace)
        if all(_apart(actor, other) for other in actors):
            actors.append(actor)
    return tuple(actors)


def _apart(first: Actor, second: Actor) -> bool:
    """Whether two actors never touch."""
    for frame in range(FRAMES):
        one, other = first.at(frame), second.at(frame)
        assert one is not None
        assert other is not None
        reach = 1.2 * (one.radius + other.radius) + _GAP
        if (one.x - other.x) ** 2 + (one.y - other.y) ** 2 < reach**2:
            return False
    return True


def _events(rng: np.random.Generator) -> tuple[Actor, ...]:
    """One to five objects, at most two in a step and those in different places."""
    count = int(rng.integers(1, 6))
    steps = sorted(int(slot) // 2 for slot in rng.choice(2 * STEPS, size=count, replace=False))
    if 1 < count <= STEPS and rng.random() < 0.7:
        steps = sorted(int(step) for step in rng.choice(STEPS, size=count, replace=False))
    cells = [int(cell) for cell in rng.choice(9, size=count, replace=False)]
    things = [plain_object(rng, cell) for cell in cells]
    if count > 1 and rng.random() < 0.3:
        shapes = [thing.shape for thing in things]
        repeat(rng, shapes, SHAPES, int(rng.integers(2, count + 1)))
        things = [replace(thing, shape=shape) for thing, shape in zip(things, shapes, strict=True)]
    return tuple(Actor(thing, step=step) for thing, step in zip(things, steps, strict=True))


def plain_object(rng: np.random.Generator, cell: int) -> Object:
    """An object without a sign."""
    return replace(make_object(rng, pick(rng, SHAPES), pick(rng, COLORS), cell), glyph=None)
