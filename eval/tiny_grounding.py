"""Where a question should look: targets for attention, used while training only.

From answers alone the decoder first learns to copy any sign or the commonest colour, and stays
there. Told for a few heads which patches a question is about, it learns to look things up within
minutes; the other heads are free.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmcompress.eval.tiny_data import FIELDS
from vlmcompress.eval.worlds import PLACES, PLURALS, SHAPES, Question, Scene

HEADS = 2
REFERENT_LAYER = 1
ANSWER_LAYER = 3
_FIRST_PATCH = 3
_PLACE = list(FIELDS).index("place")
_MIDDLE = list(FIELDS).index("middle")
_NOUNS = frozenset([*SHAPES, *PLURALS.values(), "object", "objects"])


@dataclass(frozen=True)
class Targets:
    """Wanted attention of some query tokens.

    Attributes:
        rows: [n], the picture in the batch.
        queries: [n], token within all segments of that picture.
        wanted: [n, prefix], distribution over `<s> user : <image>`.
        answering: [n], whether the query is the token that answers, else a referent.
    """

    rows: Tensor
    queries: Tensor
    wanted: Tensor
    answering: Tensor


def referents(words: list[str]) -> list[int]:
    """Where the question names what it is about: the last word of each description."""
    if "at" in words:
        return [len(words) - (3 if words[-2] == "have" else 2)]
    return [index for index, word in enumerate(words) if word in _NOUNS]


def wanted_attention(
    scene: Scene, question: Question, labels: NDArray[np.int8], about: tuple[int, ...]
) -> NDArray[np.float32]:
    """Distribution over the prefix for one query.

    Reading and counting look at the middles of objects. Counting keeps one share for `<s>`, whose
    weight then tells the number; "no" looks at `<s>` alone.
    """
    places = [PLACES.index(scene.objects[index].place) + 1 for index in about]
    patches = np.isin(labels[_PLACE], places)
    if question.kind in ("reading", "count"):
        patches &= labels[_MIDDLE] == 1
    wanted = np.zeros(_FIRST_PATCH + len(patches), dtype=np.float32)
    wanted[_FIRST_PATCH:] = patches
    if question.kind == "count" or not about:
        wanted[0] = 1
    wanted /= wanted.sum()
    return wanted


def make_targets(
    scenes: list[Scene],
    asked: list[list[Question]],
    labels: NDArray[np.int8],
    segment_length: int,
) -> Targets:
    """Targets for a whole batch."""
    rows, queries, wanted, answering = [], [], [], []
    for row, (scene, questions) in enumerate(zip(scenes, asked, strict=True)):
        for column, question in enumerate(questions):
            words = question.text.split()
            places = referents(words)
            apart = question.kind == "relation"
            for number, place in enumerate(places):
                about = question.about[number : number + 1] if apart else question.about
                rows.append(row)
                queries.append(column * segment_length + place)
                wanted.append(wanted_attention(scene, question, labels[row], about))
                answering.append(False)
            if not apart:
                rows.append(row)
                queries.append(column * segment_length + len(words) + 1)
                wanted.append(wanted[-1])
                answering.append(True)
    return Targets(
        torch.tensor(rows),
        torch.tensor(queries),
        torch.from_numpy(np.stack(wanted)),
        torch.tensor(answering),
    )


def grounding_loss(record: dict[int, Tensor], targets: Targets) -> Tensor:
    """Cross-entropy between the attention in `record` and the targets.

    Args:
        record: Layer -> attention of `HEADS` heads to the prefix, [B, HEADS, queries, prefix].
        targets: Of the same batch.
    """
    losses = []
    for layer, mask in ((REFERENT_LAYER, ~targets.answering), (ANSWER_LAYER, targets.answering)):
        paid = record[layer][targets.rows[mask], :, targets.queries[mask]].float()
        wanted = targets.wanted[mask][:, None]
        losses.append(-(wanted * (paid + 1e-6).log()).sum(-1).mean())
    return torch.stack(losses).mean()
