"""Questions about scenes, each with exactly one right answer, each kind in two wordings."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlmcompress.eval.worlds.scene import (
    COLORS,
    HELD_OUT_SEEDS,
    SHAPES,
    Object,
    Scene,
    make_scene,
    pick,
)

NUMBERS = ("one", "two", "three", "four", "five")
WORDINGS = 2
SCENE_STREAM = 2
"""Tells the random numbers of questions from others of the same seed."""
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}


World = TypeVar("World")


@dataclass(frozen=True)
class Question:
    """A question with its answer; `about` are the indices of the objects that it needs."""

    kind: str
    wording: int
    text: str
    answer: str
    about: tuple[int, ...] = ()


def ask(
    scene: Scene, kind: str, rng: np.random.Generator, wording: int | None = None
) -> Question | None:
    """Ask one random question of `kind`.

    Args:
        scene: The scene to ask about.
        kind: One of `KINDS`.
        rng: Chooses among the possible questions.
        wording: 0 or 1; drawn when absent.

    Returns:
        The question, or None where the scene has no unambiguous one of this kind.
    """
    if wording is None:
        wording = int(rng.integers(WORDINGS))
    return _ASKERS[kind](scene, rng, wording)


def held_out(
    limit: int, first_seed: int = HELD_OUT_SEEDS.start
) -> Iterator[tuple[Scene, Question]]:
    """Yield `limit` held-out questions, kinds and wordings in turn, one scene each."""
    return in_turn(tuple(KINDS), make_scene, ask, limit, first_seed, SCENE_STREAM)


def in_turn(
    kinds: Sequence[str],
    make: Callable[[int], World],
    ask_one: Callable[[World, str, np.random.Generator, int], Question | None],
    limit: int,
    first_seed: int,
    stream: int,
) -> Iterator[tuple[World, Question]]:
    """Yield `limit` held-out questions, kinds and wordings in turn, each about a world of its own.

    Args:
        kinds: Of question.
        make: Gives the world of a seed.
        ask_one: Gives its question of a kind and wording, or None.
        limit: How many.
        first_seed: Where to begin.
        stream: Of the world, as `SCENE_STREAM`.
    """
    seed = first_seed
    for number in range(limit):
        kind = kinds[number % len(kinds)]
        wording = number // len(kinds) % WORDINGS
        question = None
        while question is None:
            if seed not in HELD_OUT_SEEDS:
                raise ValueError(f"seed {seed} is outside the held-out range {HELD_OUT_SEEDS}")
            world = make(seed)
            question = ask_one(world, kind, np.random.default_rng([seed, stream]), wording)
            seed += 1
        yield world, question


def _unique_names(scene: Scene) -> list[int]:
    names = Counter(thing.name for thing in scene.objects)
    return [index for index, thing in enumerate(scene.objects) if names[thing.name] == 1]


def _at(thing: Object) -> str:
    return f"at the {thing.place}"


def _ask_color(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    index, referent = _refer(scene, rng, "shape", "{}")
    text = (f"what color is the {referent} ?", f"which color does the {referent} have ?")[wording]
    return Question("color", wording, text, scene.objects[index].color, (index,))


def _ask_shape(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    index, referent = _refer(scene, rng, "color", "{} object")
    text = (f"what shape is the {referent} ?", f"which shape does the {referent} have ?")[wording]
    return Question("shape", wording, text, scene.objects[index].shape, (index,))


def _refer(scene: Scene, rng: np.random.Generator, attribute: str, phrase: str) -> tuple[int, str]:
    """An object and words that mean only it: its unique `attribute` in `phrase`, or its place."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    unique = [index for index, value in enumerate(values) if values.count(value) == 1]
    if unique and rng.random() < 0.7:
        index = pick(rng, unique)
        return index, phrase.format(values[index])
    index = pick(rng, range(len(scene.objects)))
    return index, f"object {_at(scene.objects[index])}"


def _ask_place(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    unique = _unique_names(scene)
    if not unique:
        return None
    index = pick(rng, unique)
    thing = scene.objects[index]
    text = (f"where is the {thing.name} ?", f"in which place is the {thing.name} ?")[wording]
    return Question("place", wording, text, thing.place, (index,))


def _ask_count(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    shapes = Counter(thing.shape for thing in scene.objects)
    colors = Counter(thing.color for thing in scene.objects)
    options = [(count, PLURALS[shape], shape) for shape, count in shapes.items()]
    options += [(count, f"{color} objects", color) for color, count in colors.items()]
    counts = sorted({count for count, _, _ in options if count <= len(NUMBERS)})
    if not counts:
        return None
    # Draw the answer first: drawn by referent, "one" would be right four times in five.
    answer = pick(rng, counts)
    _, plural, word = pick(rng, [option for option in options if option[0] == answer])
    text = (f"how many {plural} are there ?", f"count the {plural} .")[wording]
    about = tuple(
        index for index, thing in enumerate(scene.objects) if word in (thing.shape, thing.color)
    )
    return Question("count", wording, text, NUMBERS[answer - 1], about)


def _ask_reading(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    signs = [index for index in _unique_names(scene) if scene.objects[index].glyph is not None]
    if not signs:
        return None
    index = pick(rng, signs)
    thing = scene.objects[index]
    assert thing.glyph is not None
    text = (
        f"what is written on the {thing.name} ?",
        f"which sign does the {thing.name} have ?",
    )[wording]
    return Question("reading", wording, text, thing.glyph, (index,))


def _ask_presence(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    present = {(thing.color, thing.shape) for thing in scene.objects}
    shapes = [shape for shape in SHAPES if any(shape == thing.shape for thing in scene.objects)]
    colors = [color for color in COLORS if any(color == thing.color for thing in scene.objects)]
    absent = [
        (color, shape) for color in colors for shape in shapes if (color, shape) not in present
    ]
    if not absent:
        return None
    is_there = bool(rng.random() < 0.5)
    color, shape = pick(rng, sorted(present) if is_there else absent)
    article = "an" if color == "orange" else "a"
    text = (f"is there {article} {color} {shape} ?", f"do you see {article} {color} {shape} ?")
    about = tuple(
        index
        for index, thing in enumerate(scene.objects)
        if (thing.color, thing.shape) == (color, shape)
    )
    return Question("presence", wording, text[wording], "yes" if is_there else "no", about)


def _ask_relation(scene: Scene, rng: np.random.Generator, wording: int) -> Question | None:
    things = [(index, scene.objects[index]) for index in _unique_names(scene)]
    placed = [(index, thing.name, (thing.row, thing.column)) for index, thing in things]
    return ask_relation(placed, rng, wording)


def ask_relation(
    things: Sequence[tuple[int, str, tuple[int, int]]], rng: np.random.Generator, wording: int
) -> Question | None:
    """Ask whether a thing is left or right of another, or above or below it.

    Args:
        things: Of each its index, a name that no other one has, and the row and column of its
            place.
        rng: Chooses the direction and the two.
        wording: 0 or 1.

    Returns:
        The question, or None where no two are apart in the direction that was drawn.
    """
    across = int(rng.random() < 0.5)
    pairs = [
        (first, second)
        for first in things
        for second in things
        if first[2][across] != second[2][across]
    ]
    if not pairs:
        return None
    (first, name, here), (second, other, there) = pick(rng, pairs)
    before = bool(rng.random() < 0.5)
    relation = (("below", "above"), ("right of", "left of"))[across][before]
    text = (
        f"is the {name} {relation} the {other} ?",
        f"does the {name} lie {relation} the {other} ?",
    )[wording]
    holds = (here[across] < there[across]) == before
    return Question("relation", wording, text, "yes" if holds else "no", (first, second))


_Asker = Callable[[Scene, np.random.Generator, int], Question | None]
_ASKERS: dict[str, _Asker] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "place": _ask_place,
    "count": _ask_count,
    "reading": _ask_reading,
    "presence": _ask_presence,
    "relation": _ask_relation,
}
KINDS = tuple(_ASKERS)
