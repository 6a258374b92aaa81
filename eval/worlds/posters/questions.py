"""Questions about posters, each with exactly one right answer, each kind in two wordings.

A "figure" is a coloured shape: a heart is red, too, but no figure.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vlmcompress.eval.worlds.posters.poster import ICONS, Item, Poster, make_poster
from vlmcompress.eval.worlds.questions import PLURALS as SHAPE_PLURALS
from vlmcompress.eval.worlds.questions import Question, ask_relation, in_turn
from vlmcompress.eval.worlds.scene import HELD_OUT_SEEDS, PLACES, pick

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = SHAPE_PLURALS | {icon: f"{icon}s" for icon in ICONS}
PLURALS |= {"butterfly": "butterflies", "bus": "buses", "cactus": "cactuses"}
WORDINGS = 2
POSTER_STREAM = 12


def ask_poster(
    poster: Poster, kind: str, rng: np.random.Generator, wording: int | None = None
) -> Question | None:
    """Ask one random question of `kind`.

    Args:
        poster: What to ask about.
        kind: One of `POSTER_KINDS`.
        rng: Chooses among the possible questions.
        wording: 0 or 1; drawn when absent.

    Returns:
        The question, its `about` the indices of items, or of bars for the kind "chart"; None where
        the poster has no unambiguous one of this kind.
    """
    if wording is None:
        wording = int(rng.integers(WORDINGS))
    return _ASKERS[kind](poster, rng, wording)


def held_out_posters(
    limit: int, first_seed: int = HELD_OUT_SEEDS.start, kinds: Sequence[str] | None = None
) -> Iterator[tuple[Poster, Question]]:
    """Yield `limit` held-out questions, kinds and wordings in turn, one poster each."""
    return in_turn(kinds or POSTER_KINDS, make_poster, ask_poster, limit, first_seed, POSTER_STREAM)


def _alone(poster: Poster, word: Callable[[Item], str | None]) -> list[int]:
    """Items whose `word` no other item has."""
    words = [word(item) for item in poster.items]
    return [i for i, one in enumerate(words) if one is not None and words.count(one) == 1]


def _unique(poster: Poster) -> list[int]:
    return _alone(poster, lambda item: item.name)


def _alone_in_place(poster: Poster) -> list[int]:
    """Items that are all that there is in their place; a chart is something, too."""
    taken: set[str] = set()
    if poster.chart is not None:
        rows = range(poster.chart.row // 2, (poster.chart.row + 2) // 2 + 1)
        columns = range(poster.chart.column // 2, (poster.chart.column + 2) // 2 + 1)
        taken = {PLACES[row * 3 + column] for row in rows for column in columns}
    alone = _alone(poster, lambda item: item.place)
    return [index for index in alone if poster.items[index].place not in taken]


def _charted(poster: Poster) -> set[str]:
    """Colours of bars, which no question about items may name: "red" could mean the bar."""
    return {bar.color for bar in poster.chart.bars} if poster.chart else set()


def _refer(
    poster: Poster, rng: np.random.Generator, unique: list[int], phrase: Callable[[Item], str]
) -> tuple[int, str] | None:
    """A coloured shape and words that mean only it: what is `unique` of it, or its place."""
    if unique:
        index = pick(rng, unique)
        if rng.random() < 0.7:
            return index, phrase(poster.items[index])
    placed = [i for i in _alone_in_place(poster) if poster.items[i].color is not None]
    if not placed:
        return None
    index = pick(rng, placed)
    return index, f"object at the {poster.items[index].place}"


def _ask_color(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    unique = _alone(poster, lambda item: item.kind if item.color else None)
    found = _refer(poster, rng, unique, lambda item: item.kind)
    if found is None:
        return None
    index, words = found
    color = poster.items[index].color
    assert color is not None
    text = (f"what color is the {words} ?", f"which color does the {words} have ?")[wording]
    return Question("color", wording, text, color, (index,))


def _ask_shape(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    charted = _charted(poster)
    unique = _alone(poster, lambda item: None if item.color in charted else item.color)
    found = _refer(poster, rng, unique, lambda item: f"{item.color} figure")
    if found is None:
        return None
    index, words = found
    text = (f"what shape is the {words} ?", f"which shape does the {words} have ?")[wording]
    return Question("shape", wording, text, poster.items[index].kind, (index,))


def _ask_naming(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    alone = _alone_in_place(poster)
    if not alone:
        return None
    index = pick(rng, alone)
    item = poster.items[index]
    text = (f"what is at the {item.place} ?", f"which object is at the {item.place} ?")[wording]
    return Question("naming", wording, text, item.name, (index,))


def _ask_place(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    unique = _unique(poster)
    if not unique:
        return None
    index = pick(rng, unique)
    item = poster.items[index]
    text = (f"where is the {item.name} ?", f"in which place is the {item.name} ?")[wording]
    return Question("place", wording, text, item.place, (index,))


def _ask_count(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    kinds = Counter(item.kind for item in poster.items)
    colors = Counter(item.color for item in poster.items if item.color)
    options = [(count, PLURALS[kind], kind) for kind, count in kinds.items()]
    options += [
        (count, f"{color} figures", color)
        for color, count in colors.items()
        if color not in _charted(poster)
    ]
    counts = sorted({count for count, _, _ in options if count <= len(NUMBERS)})
    if not counts:
        return None
    # Draw the answer first: drawn by referent, "one" would be right four times in five.
    answer = pick(rng, counts)
    _, plural, word = pick(rng, [option for option in options if option[0] == answer])
    text = (f"how many {plural} are there ?", f"count the {plural} .")[wording]
    about = tuple(i for i, item in enumerate(poster.items) if word in (item.kind, item.color))
    return Question("count", wording, text, NUMBERS[answer - 1], about)


def _read(kind: str, in_list: bool) -> "_Asker":
    def ask(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
        signs = [
            index
            for index in _unique(poster)
            if poster.items[index].plate and poster.items[index].in_list == in_list
        ]
        if not signs:
            return None
        index = pick(rng, signs)
        item = poster.items[index]
        assert item.plate is not None
        text = (
            f"what is written {'next to' if in_list else 'under'} the {item.name} ?",
            f"which code does the {item.name} have ?",
        )[wording]
        return Question(kind, wording, text, " ".join(item.plate.text), (index,))

    return ask


def _ask_presence(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    shown = {item.name for item in poster.items}
    charted = _charted(poster)
    shapes = sorted({item.kind for item in poster.items if item.color})
    colors = sorted({item.color for item in poster.items if item.color})
    likely = [f"{color} {shape}" for color in colors for shape in shapes]
    is_there, drawn = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    # An absent shape has a colour and a form that are there, but not together.
    named = likely if drawn and likely else list(ICONS)
    options = [
        name
        for name in named
        if (name in shown) == is_there and (name in ICONS or name.split()[0] not in charted)
    ]
    if not options:
        return None
    name = pick(rng, options)
    article = "an" if name[0] in "aeiou" else "a"
    text = (f"is there {article} {name} ?", f"do you see {article} {name} ?")[wording]
    about = tuple(i for i, item in enumerate(poster.items) if item.name == name)
    return Question("presence", wording, text, "yes" if is_there else "no", about)


def _ask_relation(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    items = [(index, poster.items[index]) for index in _unique(poster)]
    placed = [(index, item.name, (item.row // 2, item.column // 2)) for index, item in items]
    return ask_relation(placed, rng, wording)


def _ask_chart(poster: Poster, rng: np.random.Generator, wording: int) -> Question | None:
    if poster.chart is None:
        return None
    bars = poster.chart.bars
    if rng.random() < 0.5:
        index = pick(rng, range(len(bars)))
        bar = bars[index]
        text = (
            f"how high is the {bar.color} bar ?",
            f"what is the height of the {bar.color} bar ?",
        )
        return Question("chart", wording, text[wording], NUMBERS[bar.value - 1], (index,))
    highest = bool(rng.random() < 0.5)
    values = [bar.value for bar in bars]
    index = values.index(max(values) if highest else min(values))
    word = "highest" if highest else "lowest"
    text = (f"what color is the {word} bar ?", f"which bar is the {word} ?")
    return Question("chart", wording, text[wording], bars[index].color, (index,))


_Asker = Callable[[Poster, np.random.Generator, int], Question | None]
_ASKERS: dict[str, _Asker] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "naming": _ask_naming,
    "place": _ask_place,
    "count": _ask_count,
    "reading": _read("reading", in_list=False),
    "list": _read("list", in_list=True),
    "presence": _ask_presence,
    "relation": _ask_relation,
    "chart": _ask_chart,
}
POSTER_KINDS = tuple(_ASKERS)
"""What can be asked about a poster."""
