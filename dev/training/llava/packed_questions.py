"""Many questions about one picture in one sequence, each as if it were asked alone.

The sequence is a shared prefix (`<s> user : <image>`) followed by segments of equal length, one
question with its answer each. A segment sees the prefix and itself and its positions restart after
the prefix, so training meets exactly what inference with a single question will.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dev.training.llava.attention_targets import HEADS
from dev.training.llava.data import FIELDS, IGNORED, PATCHES
from dev.training.llava.model import vocabulary
from vlmcompress.eval.worlds.world import KINDS, Question, Scene, ask

PREFIX = ("<s>", "user", ":")
PREFIX_LENGTH = len(PREFIX) + PATCHES
SEGMENTS = 14
SEGMENT_LENGTH = 16
UNSCORED = -100

IDS = {word: number for number, word in enumerate(vocabulary())}


@dataclass(frozen=True)
class PackedBatch:
    """Questions about several pictures.

    Attributes:
        tokens: [B, SEGMENTS, SEGMENT_LENGTH], int64.
        wanted: Like `tokens`, the next token where it is part of an answer, else `UNSCORED`.
        kinds: [B, SEGMENTS], index into `KINDS`.
    """

    tokens: Tensor
    wanted: Tensor
    kinds: Tensor


def pose(scene: Scene, rng: np.random.Generator, odds: Sequence[float]) -> list[Question]:
    """Ask `SEGMENTS` questions about `scene`, kinds drawn with `odds`."""
    return drawn(lambda kind: ask(scene, kind, rng), KINDS, rng, odds, SEGMENTS)


def drawn(
    asked: Callable[[str], Question | None],
    kinds: Sequence[str],
    rng: np.random.Generator,
    odds: Sequence[float],
    count: int,
) -> list[Question]:
    """`count` questions, their kinds drawn with `odds` from those that can be asked."""
    questions: list[Question] = []
    while len(questions) < count:
        question = asked(kinds[int(rng.choice(len(kinds), p=odds))])
        if question is not None:
            questions.append(question)
    return questions


def pack(
    asked: list[list[Question]],
    ids: Mapping[str, int] = IDS,
    end: str = "</s>",
    every_kind: Sequence[str] = KINDS,
) -> PackedBatch:
    """Turn questions, as many about each picture, into tokens; padding has the id 0."""
    shape = (len(asked), len(asked[0]), SEGMENT_LENGTH)
    tokens = np.zeros(shape, dtype=np.int64)
    wanted = np.full(shape, UNSCORED)
    kinds = np.zeros(shape[:2], dtype=np.int64)
    for row, questions in enumerate(asked):
        for column, question in enumerate(questions):
            prompt = [*question.text.split(), "assistant", ":"]
            words = [ids[word] for word in [*prompt, *question.answer.split(), end]]
            tokens[row, column, : len(words)] = words
            start = len(prompt)
            wanted[row, column, start - 1 : len(words) - 1] = words[start:]
            kinds[row, column] = every_kind.index(question.kind)
    return PackedBatch(torch.from_numpy(tokens), torch.from_numpy(wanted), torch.from_numpy(kinds))


def positions(kept: Tensor, patches: int = PATCHES, segments: int = SEGMENTS) -> Tensor:
    """Position ids of the whole sequence, those of the text as if no patch were missing.

    Args:
        kept: [B, K], which patches are shown, ascending.
        patches: How many there are.
        segments: Of the text.

    Returns:
        [B, len(PREFIX) + K + segments * SEGMENT_LENGTH].
    """
    before = torch.arange(len(PREFIX)).expand(len(kept), -1)
    segment = torch.arange(SEGMENT_LENGTH).repeat(segments) + len(PREFIX) + patches
    return torch.cat([before, kept + len(PREFIX), segment.expand(len(kept), -1)], dim=1)


def _causal(length: int, like: Tensor) -> Tensor:
    mask = torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(1)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of prefix and segments, with the signature of transformers' attention functions.

    It costs less than half of full attention under a block mask. `prefix` among `kwargs` is the
    length of the prefix if it is not `PREFIX_LENGTH`. `record` is filled with the attention of the
    first `HEADS` heads of segments to the prefix, layer by layer; `record_prefix`, where its
    layers are already keys, with that of the last `HEADS` heads within the prefix.
    """
    batch, heads, length, width = query.shape
    cut = kwargs.get("prefix", PREFIX_LENGTH)
    query = query * scaling
    head_q, head_k, head_v = query[:, :, :cut], key[:, :, :cut], value[:, :, :cut]
    scores = head_q @ head_k.transpose(-1, -2) + _causal(cut, query)
    head_weights = scores.softmax(dim=-1)
    head_out = head_weights @ head_v

    tail_q, tail_k, tail_v = query[:, :, cut:], key[:, :, cut:], value[:, :, cut:]
    split = (batch, heads, (length - cut) // SEGMENT_LENGTH, SEGMENT_LENGTH, width)
    own = tail_q.reshape(split) @ tail_k.reshape(split).transpose(-1, -2)
    own = own + _causal(SEGMENT_LENGTH, query)
    seen = tail_q @ head_k.transpose(-1, -2)
    weights = torch.cat([seen, own.flatten(2, 3)], dim=-1).softmax(dim=-1)
    inner = weights[..., cut:].reshape(own.shape) @ tail_v.reshape(split)
    record = kwargs.get("record")
    if record is not None:
        record[module.layer_idx] = weights[:, :HEADS, :, :cut]
    within = kwargs.get("record_prefix")
    if within is not None and module.layer_idx in within:
        within[module.layer_idx] = head_weights[:, -HEADS:]
    tail_out = weights[..., :cut] @ head_v + inner.flatten(2, 3)
    return torch.cat([head_out, tail_out], dim=2).transpose(1, 2), None


def word_table() -> tuple[Tensor, Tensor]:
    """Which words describe a label; see `table_of`.

    The middle of an object is called "object": one such patch an object makes counting possible.
    """
    words: dict[str, Sequence[tuple[str, ...]]] = {
        "shape": [(word,) for word in FIELDS["shape"]],
        "color": [(word,) for word in FIELDS["color"]],
        "size": [() for _ in FIELDS["size"]],
        "glyph": [(word,) for word in FIELDS["glyph"]],
        "place": [tuple(place.split()) for place in FIELDS["place"]],
        "middle": [("object",)],
    }
    return table_of(words, IDS)


def table_of(
    words: Mapping[str, Sequence[tuple[str, ...]]], ids: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """Which words describe a label.

    Args:
        words: Field -> the words of each of its values, from value 1 on.
        ids: Number of every word.

    Returns:
        The ids of all describing words, [W], and for each field and value which of them apply,
        [fields, values, W] float.
    """
    used = sorted({ids[word] for field in words.values() for value in field for word in value})
    table = torch.zeros(len(words), max(map(len, words.values())) + 1, len(used))
    for row, field in enumerate(words.values()):
        for value, describing in enumerate(field):
            for word in describing:
                table[row, value + 1, used.index(ids[word])] = 1
    return torch.tensor(used), table


def describe_patches(labels: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Words of each patch.

    Args:
        labels: [B, rows, N], a row for each field of the table first.
        table: Of `table_of`.

    Returns:
        Multi-hot words, [B, N, W], and two masks, [B, N]: objects, and background.
    """
    wanted = labels.long().clamp(min=0)
    words = sum(table[field][wanted[:, field]] for field in range(len(table)))
    assert isinstance(words, Tensor)
    known = labels[:, 0] != IGNORED
    return words.clamp(max=1), (labels[:, 0] > 0), known & (labels[:, 0] == 0)
