"""Original positions in a shortened prompt.

vLLM asks a model for the positions of a prompt when it arrives, and hands them back for correction
once features are there. Positions of text are final at once. A visual token first says where its
image begins; which of the image's tokens it is comes with its features, as further columns. So
nothing depends on what was computed before: cached blocks, borders of chunks and repeated
computation change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BASE, _DIGITS = 256, 2
COLUMNS = 3 * _DIGITS
"""Behind the features, in their dtype: positions as digits of base 256, exact in bfloat16."""


@dataclass(frozen=True)
class Run:
    """The features of one image or clip in a prompt."""

    start: int
    """Their first place in the shortened prompt."""
    kept: int
    given: int
    """How many of them there are, and were."""


def unpruned(runs: Sequence[Run], length: int) -> tuple[Tensor, list[int]]:
    """Where the tokens of a shortened prompt stand in the whole one.

    Args:
        runs: ascending.
        length: of the shortened prompt.

    Returns:
        [length] int64 places in the whole prompt; those of a run point to its first. And where each
        run begins in the whole prompt.
    """
    columns: list[int] = []
    begins: list[int] = []
    grown = done = 0
    for run in runs:
        columns += range(done + grown, run.start + grown)
        begins.append(run.start + grown)
        columns += [run.start + grown] * run.kept
        done = run.start + run.kept
        grown += run.given - run.kept
    columns += range(done + grown, length + grown)
    return torch.tensor(columns, dtype=torch.long), begins


def marked(whole: Tensor, delta: int, runs: Sequence[Run], length: int) -> tuple[Tensor, int]:
    """Positions of a shortened prompt in which visual tokens say where their image begins.

    Args:
        whole: [3, L] int64, positions of the whole prompt.
        delta: the position after it, less L.
        runs: of features in the shortened prompt, ascending.
        length: of the shortened prompt.

    Returns:
        [3, length] int64, and the position after it less `length`. Rows of a visual token are
        -1 - (the position of its image's first token), but that the second row tells the position
        after the image.
    """
    columns, begins = unpruned(runs, length)
    positions = whole[:, columns].clone()
    for run, begin in zip(runs, begins, strict=True):
        place, image = slice(run.start, run.start + run.kept), whole[:, begin : begin + run.given]
        first = image[:, :1]
        positions[:, place] = -1 - first
        positions[1, place] = -2 - image.max()
    return positions, delta + whole.shape[1] - length


def columns_of(relative: Tensor, like: Tensor) -> Tensor:
    """[K, COLUMNS] in the dtype of `like`, of [3, K] positions relative to an image's first."""
    digits = [relative // _BASE**power % _BASE for power in range(_DIGITS)]
    return torch.cat(digits).T.to(like)


def settled(
    positions: Tensor, embeddings: Sequence[Tensor], visual: Tensor, computed: int
) -> tuple[list[Tensor], Tensor, int | None]:
    """Positions in which the visual tokens of a stretch of the prompt have theirs.

    Args:
        positions: [3, n], as `marked` made them or this function left them.
        embeddings: [k, D + COLUMNS] each, of the visual tokens from `computed` on, in order.
        visual: [n] bool, which tokens of the prompt are visual.
        computed: tokens before the stretch.

    Returns:
        The embeddings without the columns, positions, and the position after the prompt less n,
        where the prompt ends with one of these tokens or with text; None where it is not known.
    """
    clean = [each[:, :-COLUMNS] for each in embeddings]
    positions, length = positions.clone(), positions.shape[1]
    after = None if bool(visual[-1]) else int(positions[:, -1].max()) + 1
    if clean:
        digits = torch.cat([each[:, -COLUMNS:] for each in embeddings]).T
        digits = digits.to(positions.device, torch.long).view(_DIGITS, 3, -1)
        relative = sum(digits[power] * _BASE**power for power in range(_DIGITS))
        assert isinstance(relative, Tensor)
        places = visual.nonzero()[:, 0]
        places = places[places >= computed][: relative.shape[1]]
        known = positions[:, places]
        if int(places[-1]) == length - 1 and int(known[1, -1]) < 0:
            after = -1 - int(known[1, -1])
        base = (-1 - known[:1]).expand_as(known)
        positions[:, places] = torch.where(known < 0, base + relative, known)
    return clean, positions, None if after is None else after - length


def one_axis(tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
    """The same of a model whose positions are one number per token: three equal rows."""
    return torch.arange(len(tokens)).expand(3, -1), 0
