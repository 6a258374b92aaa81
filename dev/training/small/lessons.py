"""What the decoder is taught: questions about posters, and where they should look."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dev.training.llava.attention_targets import Targets, spread
from dev.training.llava.packed_questions import PREFIX, SEGMENT_LENGTH, drawn
from dev.training.small.data import MIDDLE, ORDER, OWNER, PATCHES
from vlmcompress.eval.worlds.posters.poster import ICONS, Poster
from vlmcompress.eval.worlds.posters.questions import PLURALS, POSTER_KINDS, ask_poster
from vlmcompress.eval.worlds.questions import Question
from vlmcompress.eval.worlds.scene import PLACES, SHAPES

SEGMENTS = 16
_NOUNS = frozenset([*SHAPES, *ICONS, *PLURALS.values(), "figure", "figures"])
_EXTREMES = ("highest", "lowest")


def pose_posters(poster: Poster, rng: np.random.Generator, odds: Sequence[float]) -> list[Question]:
    """`SEGMENTS` questions about `poster`, kinds drawn with `odds` from those that it allows."""
    return drawn(lambda kind: ask_poster(poster, kind, rng), POSTER_KINDS, rng, odds, SEGMENTS)


def choose_patches(
    labels: NDArray[np.int8], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Patches to train on: those of items and bars first, filled up with the background.

    Args:
        labels: [B, ROWS, 576].
        count: How many of each poster.
        rng: Chooses among patches of equal worth.

    Returns:
        [B, count], ascending.
    """
    worth = (labels[:, OWNER] > 0) + rng.random((len(labels), PATCHES))
    chosen = np.argpartition(-worth, count - 1, axis=1)[:, :count]
    return np.sort(chosen, axis=1)


def naming_words(question: Question) -> list[int]:
    """Where a question says what it is about: the last word of each description."""
    words = question.text.split()
    if question.kind == "chart":
        return [next((i for i, word in enumerate(words) if word in _EXTREMES), len(words) - 2)]
    # "what is at the top left ?", "what color is the object at the top left ?"
    if "at" in words and " ".join(words[words.index("at") + 2 : -1]) in PLACES:
        return [len(words) - 2]
    if words[-2:] == ["have", "?"] and "at" in words:  # "... does the object at the left have ?"
        return [len(words) - 3]
    return [index for index, word in enumerate(words) if word in _NOUNS]


def make_targets(
    posters: Sequence[Poster],
    asked: Sequence[Sequence[Question]],
    labels: NDArray[np.int8],
) -> Targets:
    """Targets for a whole batch.

    Reading looks at one sign after the other, counting at the middles of items. Counting keeps one
    share for `<s>`, whose weight then tells the number; "no" looks at `<s>` alone.

    Args:
        posters: A batch.
        asked: Questions about each.
        labels: [B, ROWS, K] of the patches that are shown.
    """
    rows: list[tuple[int, int, bool]] = []
    wanted: list[NDArray[np.float32]] = []

    def tell(row: int, query: int, patches: NDArray[np.bool_], start: bool, answers: bool) -> None:
        rows.append((row, query, answers))
        wanted.append(spread(patches, len(PREFIX), start or not patches.any()))

    for row, (poster, questions) in enumerate(zip(posters, asked, strict=True)):
        before = len(poster.items) + 1
        for column, question in enumerate(questions):
            first = column * SEGMENT_LENGTH
            answer = first + len(question.text.split()) + 1
            owners = [i + (before if question.kind == "chart" else 1) for i in question.about]
            patches = np.isin(labels[row, OWNER], owners)
            count = question.kind == "count"
            if count:
                patches &= labels[row, MIDDLE] == 1
            apart = question.kind == "relation"
            for number, word in enumerate(naming_words(question)):
                own = labels[row, OWNER] == owners[number] if apart else patches
                tell(row, first + word, own, count, False)
            if question.kind in ("reading", "list"):
                for number in range(len(question.answer.split())):
                    sign = patches & (labels[row, ORDER] == number + 1)
                    tell(row, answer + number, sign, False, True)
            elif not apart:
                tell(row, answer, patches, count, True)
    told = torch.tensor(rows)
    return Targets(told[:, 0], told[:, 1], torch.from_numpy(np.stack(wanted)), told[:, 2].bool())
