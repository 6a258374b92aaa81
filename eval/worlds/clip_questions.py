"""Questions about clips, each with exactly one right answer, each kind in two wordings."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vlmcompress.eval.worlds.clips import THEMES, Clip, make_clip
from vlmcompress.eval.worlds.questions import NUMBERS, PLURALS, WORDINGS, Question, in_turn
from vlmcompress.eval.worlds.scene import HELD_OUT_SEEDS, Object, pick

CLIP_STREAM = 4


def ask_clip(
    clip: Clip, kind: str, rng: np.random.Generator, wording: int | None = None
) -> Question | None:
    """Ask one random question of `kind`.

    Args:
        clip: The clip to ask about.
        kind: One of `CLIP_KINDS`.
        rng: Chooses among the possible questions.
        wording: 0 or 1; drawn when absent.

    Returns:
        The question, or None where the clip has no unambiguous one of this kind. `about` are
        indices of actors; of an order question the last one is the answer.
    """
    if wording is None:
        wording = int(rng.integers(WORDINGS))
    if clip.theme != THEME_OF[kind]:
        return None
    return _ASKERS[kind](clip, rng, wording)


def held_out_clips(
    limit: int, first_seed: int = HELD_OUT_SEEDS.start
) -> Iterator[tuple[Clip, Question]]:
    """Yield `limit` held-out questions, kinds and wordings in turn, one clip each."""
    return in_turn(CLIP_KINDS, make_clip, ask_clip, limit, first_seed, CLIP_STREAM)


def names_of(things: Sequence[Object]) -> list[str | None]:
    """For each object the shortest words that mean it alone, or None where there are none."""

    def alone(attribute: str, thing: Object) -> bool:
        value = getattr(thing, attribute)
        return [getattr(other, attribute) for other in things].count(value) == 1

    names: list[str | None] = []
    for thing in things:
        if alone("shape", thing):
            names.append(thing.shape)
        elif alone("color", thing):
            names.append(f"{thing.color} object")
        else:
            names.append(thing.name if alone("name", thing) else None)
    return names


def _ask_motion(clip: Clip, rng: np.random.Generator, wording: int) -> Question | None:
    names = names_of([actor.thing for actor in clip.actors])
    moving = [
        (index, name, actor.direction)
        for index, (name, actor) in enumerate(zip(names, clip.actors, strict=True))
        if name is not None and actor.direction is not None
    ]
    if not moving:
        return None
    index, name, direction = pick(rng, moving)
    text = (f"which way does the {name} move ?", f"in which direction does the {name} move ?")
    return Question("motion", wording, text[wording], direction, (index,))


def _ask_order(clip: Clip, rng: np.random.Generator, wording: int) -> Question | None:
    steps = [actor.step for actor in clip.actors if actor.step is not None]
    used = sorted(set(steps))
    alone = {step: steps.index(step) for step in used if steps.count(step) == 1}
    options: list[tuple[str, tuple[int, ...]]] = []
    if len(used) > 1:
        options += [
            (word, (alone[step],))
            for word, step in (("first", used[0]), ("last", used[-1]))
            if step in alone
        ] * 2
    for index, name in enumerate(names_of([actor.thing for actor in clip.actors])):
        here = used.index(steps[index]) if name is not None else 0
        for word, there in (("after", here + 1), ("before", here - 1)):
            if name is not None and 0 <= there < len(used) and used[there] in alone:
                options.append((f"{word} the {name}", (index, alone[used[there]])))
    if not options:
        return None
    when, about = pick(rng, options)
    text = (f"what appears {when} ?", f"which object appears {when} ?")[wording]
    return Question("order", wording, text, clip.actors[about[-1]].thing.name, about)


def _ask_counting(clip: Clip, rng: np.random.Generator, wording: int) -> Question | None:
    everything = tuple(range(len(clip.actors)))
    shapes = Counter(actor.thing.shape for actor in clip.actors)
    referent, about = "objects", everything
    repeated = [shape for shape, count in shapes.items() if count > 1]
    if repeated and rng.random() < 0.5:
        shape = pick(rng, repeated)
        referent = PLURALS[shape]
        about = tuple(index for index in everything if clip.actors[index].thing.shape == shape)
    text = (f"how many {referent} appear ?", f"count the {referent} that appear .")[wording]
    return Question("counting", wording, text, NUMBERS[len(about) - 1], about)


_ASKERS: dict[str, Callable[[Clip, np.random.Generator, int], Question | None]] = {
    "motion": _ask_motion,
    "order": _ask_order,
    "counting": _ask_counting,
}
THEME_OF = {"motion": THEMES[0], "order": THEMES[1], "counting": THEMES[1]}
CLIP_KINDS = tuple(_ASKERS)
