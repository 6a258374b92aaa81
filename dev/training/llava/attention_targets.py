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

from dev.training.llava.data import FIELDS
from vlmcompress.eval.worlds.world import PLACES, PLURALS, SHAPES, Question, Scene

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

    def only(self, mask: Tensor) -> "Targets":
        """The targets that `mask`, [n] bool, selects."""
        chosen = (self.rows[mask], self.queries[mask], self.wanted[mask], self.answering[mask])
        return Targets(*chosen)


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
    return spread(patches, _FIRST_PATCH, start=question.kind == "count" or not about)


def spread(
    patches: NDArray[np.bool_], before: int, start: bool, after: int = 0
) -> NDArray[np.float32]:
    """An even distribution over a prefix.

    Args:
        patches: Which visual tokens have a share, [N].
        before: Number of tokens before them.
        start: Whether the first token of all has a share, too.
        after: Number of tokens after them.

    Returns:
        [before + N + after], float32.
    """
    wanted = np.zeros(before + len(patches) + after, dtype=np.float32)
    wanted[before : before + len(patches)] = patches
    wanted[0] = start
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


def grounding_loss(
    record: dict[int, Tensor],
    targets: Targets,
    referent_layer: int = REFERENT_LAYER,
    answer_layer: int = ANSWER_LAYER,
) -> Tensor:
    """Cross-entropy between the attention in `record` and the targets.

    Args:
        record: Layer -> attention of `HEADS` heads to the prefix, [B, HEADS, queries, prefix].
        targets: Of the same batch.
        referent_layer: Where words look at what they name.
        answer_layer: Where the answering token looks.
    """
    losses = [
        attention_loss(record[referent_layer], targets.only(~targets.answering)),
        attention_loss(record[answer_layer], targets.only(targets.answering)),
    ]
    return torch.stack(losses).mean()


def attention_loss(attention: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy between attention, [B, heads, queries, prefix], and the targets; 0 of none."""
    if not len(targets.rows):
        return torch.zeros(())
    paid = attention[targets.rows, :, targets.queries].float()
    return -(targets.wanted[:, None] * (paid + 1e-6).log()).sum(-1).mean()
