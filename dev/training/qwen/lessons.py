"""Questions about pictures and clips as Qwen's decoder meets them, and where it should look.

The same packing as in `packed_questions`: a prefix (`<|im_start|> user : <|vision_start|>`, visual
tokens, `<|vision_end|>`) and segments of one question each whose positions restart after it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dev.training.llava.attention_targets import Targets, referents, spread
from dev.training.llava.packed_questions import SEGMENT_LENGTH, PackedBatch, pack
from dev.training.qwen.data import OWNER, TOKEN_FIELDS, TOKEN_SIDE, TOKENS
from dev.training.qwen.model import IDS, SPECIAL, TIME_INTERVAL
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, ask_clip
from vlmcompress.eval.worlds.clips import Clip
from vlmcompress.eval.worlds.questions import KINDS, Question
from vlmcompress.eval.worlds.scene import PLACES, Scene

EVERY_KIND = (*KINDS, *CLIP_KINDS)
BEFORE = (SPECIAL["start"], "user", ":", SPECIAL["vision_start"])
AFTER = (SPECIAL["vision_end"],)
CLIP_SEGMENTS = 8
_SKIP_EASY = 0.8
_MIDDLE = list(TOKEN_FIELDS).index("middle")


def prefix_length(steps: int) -> int:
    """Tokens before the first segment."""
    return len(BEFORE) + steps * TOKENS + len(AFTER)


def positions(steps: int, segments: int) -> Tensor:
    """Time, row and column ids of the whole sequence, [3, 1, L], as `get_rope_index` has them."""
    start = len(BEFORE)
    time, row, column = torch.meshgrid(
        torch.arange(steps) * TIME_INTERVAL,
        torch.arange(TOKEN_SIDE),
        torch.arange(TOKEN_SIDE),
        indexing="ij",
    )
    visual = torch.stack([time, row, column]).reshape(3, -1) + start
    before = torch.arange(start).expand(3, -1)
    # The text goes on after the largest row or column, however long the clip.
    after = torch.arange(len(AFTER)) + start + TOKEN_SIDE
    segment = torch.arange(SEGMENT_LENGTH) + start + TOKEN_SIDE + len(AFTER)
    text = torch.cat([after, segment.repeat(segments)]).expand(3, -1)
    return torch.cat([before, visual, text], dim=1)[:, None]


def pack_words(asked: list[list[Question]]) -> PackedBatch:
    """Questions to tokens, in this model's words."""
    return pack(asked, IDS, SPECIAL["end"], EVERY_KIND)


def pose_clip(clip: Clip, rng: np.random.Generator, odds: Sequence[float]) -> list[Question]:
    """Ask `CLIP_SEGMENTS` questions about `clip`, kinds drawn with `odds` where it has them."""
    possible = [kind for kind in CLIP_KINDS if ask_clip(clip, kind, rng) is not None]
    shares = np.array([odds[CLIP_KINDS.index(kind)] for kind in possible])
    questions: list[Question] = []
    while possible and len(questions) < CLIP_SEGMENTS:
        kind = possible[int(rng.choice(len(possible), p=shares / shares.sum()))]
        question = ask_clip(clip, kind, rng)
        # "First" and "last" are learnt long before "after" and "before".
        easy = kind == "order" and question is not None and len(question.about) == 1
        if easy and rng.random() < _SKIP_EASY:
            question = ask_clip(clip, kind, rng)
        if question is not None:
            questions.append(question)
    return questions


def _queries(question: Question) -> list[tuple[int, tuple[int, ...], bool]]:
    """Tokens whose attention is told: position in the segment, objects wanted, answering."""
    words = question.text.split()
    answering = len(words) + 1
    if question.kind == "relation":
        return [(p, question.about[n : n + 1], False) for n, p in enumerate(referents(words))]
    if question.kind == "order":
        # The words of the answer are copied from the object that the last of `about` is.
        place = next(i for i, w in enumerate(words) if w in ("first", "last", "after", "before"))
        place = place if len(question.about) == 1 else len(words) - 2
        found = question.about[-1:]
        told = [(place, question.about[:1], False)]
        return told + [(answering + n, found, True) for n in (0, 1)]
    # "object" is a name of its own where the question goes on: "how many objects appear ?"
    return [(p, question.about, False) for p in referents(words)[-1:]] + [
        (answering, question.about, True)
    ]


def make_targets(
    owners: list[tuple[int, ...]], asked: list[list[Question]], labels: NDArray[np.int8]
) -> Targets:
    """Targets for a whole batch.

    Args:
        owners: For each picture or clip the value of the owner row for each of its objects.
        asked: Its questions.
        labels: [B, ROWS, visual tokens].
    """
    told = _Told()
    for row, questions in enumerate(asked):
        for column, question in enumerate(questions):
            for place, about, is_answer in _queries(question):
                tokens = np.isin(labels[row, OWNER], [owners[row][index] for index in about])
                counted = question.kind in ("count", "counting")
                if counted or question.kind == "reading":
                    tokens &= labels[row, _MIDDLE] == 1
                told.add(row, column * SEGMENT_LENGTH + place, tokens, counted, is_answer)
    return told.targets(labels)


def make_hops(
    owners: list[tuple[int, ...]], asked: list[list[Question]], labels: NDArray[np.int8]
) -> Targets:
    """After it has found the circle, "circle" in "after the circle" looks at the answer."""
    told = _Told()
    for row, questions in enumerate(asked):
        for column, question in enumerate(questions):
            if question.kind == "order" and len(question.about) == 2:
                tokens = labels[row, OWNER] == owners[row][question.about[1]]
                place = len(question.text.split()) - 2
                told.add(row, column * SEGMENT_LENGTH + place, tokens)
    return told.targets(labels)


class _Told:
    """Targets one by one."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, bool]] = []
        self.wanted: list[NDArray[np.float32]] = []

    def add(
        self,
        row: int,
        query: int,
        tokens: NDArray[np.bool_],
        start: bool = False,
        answering: bool = False,
    ) -> None:
        """A query should look at `tokens` evenly, or at the start of the text if there are none."""
        self.rows.append((row, query, answering))
        self.wanted.append(spread(tokens, len(BEFORE), start or not tokens.any(), len(AFTER)))

    def targets(self, labels: NDArray[np.int8]) -> Targets:
        """All of them."""
        width = len(BEFORE) + labels.shape[-1] + len(AFTER)
        rows, queries, answering = torch.tensor(self.rows).reshape(-1, 3).long().unbind(1)
        wanted = np.stack(self.wanted) if self.wanted else np.zeros((0, width), dtype=np.float32)
        return Targets(rows, queries, torch.from_numpy(wanted), answering.bool())


def picture_owners(scene: Scene) -> tuple[int, ...]:
    """Values of the owner row of a picture: places."""
    return tuple(PLACES.index(thing.place) + 1 for thing in scene.objects)


def clip_owners(clip: Clip) -> tuple[int, ...]:
    """Values of the owner row of a clip: numbers of actors."""
    return tuple(range(1, len(clip.actors) + 1))


def make_links(clips: list[Clip], labels: NDArray[np.int8]) -> Targets:
    """What tokens of an event should look back at: the event before it, the first one at `<s>`.

    "What appears after the circle?" is then the object that looked at the circle.

    Args:
        clips: A batch of clips.
        labels: [B, ROWS, visual tokens].
    """
    told = _Told()
    for row, clip in enumerate(clips):
        steps = [actor.step for actor in clip.actors]
        used = sorted({step for step in steps if step is not None})
        for index, step in enumerate(steps):
            if step is None:
                continue
            number = used.index(step)
            before = [i + 1 for i, s in enumerate(steps) if number and s == used[number - 1]]
            tokens = np.isin(labels[row, OWNER], before)
            for token in np.flatnonzero(labels[row, OWNER] == index + 1):
                told.add(row, len(BEFORE) + int(token), tokens)
    return told.targets(labels)
