"""Finding every image's visual tokens in the prompts of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.tokens import Grid


@dataclass(frozen=True)
class Located:
    """One image or clip of one prompt."""

    row: int
    image: int
    """Which encoded image of the call; rows that repeat a prompt repeat its images."""
    ordinal: int
    """Which image of its prompt this is."""
    grid: Grid
    columns: Tensor
    """[N] int64, on the CPU: the columns of its placeholders in `input_ids`, in raster order."""


def locate(
    input_ids: Tensor, placeholders: Mapping[str, int], grids: Mapping[str, Sequence[Grid]]
) -> list[Located]:
    """Walk the placeholders of each row and hand them to the images in order.

    Args:
        input_ids: [B, L].
        placeholders: modality -> placeholder token id.
        grids: modality -> grid of each encoded image, as the encoder was called. Beams and
            `num_return_sequences` repeat rows after encoding: B is then a multiple of the prompts,
            and each group of equal rows shares its images.

    Raises:
        UnsupportedCallError: placeholders and encoded images do not match.
    """
    ids = input_ids.cpu()
    copies = _copies(ids, placeholders, grids)
    queues = {modality: iter(found) for modality, found in grids.items()}
    token_of = {token: modality for modality, token in placeholders.items() if modality in grids}
    tokens = torch.tensor(list(token_of))
    encoded = 0
    located: list[Located] = []
    first: list[Located] = []
    for row, line in enumerate(ids):
        if row % copies:
            located += [replace(image, row=row) for image in first]
            continue
        columns = torch.isin(line, tokens).nonzero()[:, 0]
        first = []
        while len(columns):
            grid = next(queues[token_of[int(line[columns[0]])]], None)
            if grid is None or len(grid) > len(columns):
                raise UnsupportedCallError(
                    f"row {row}: the number of image placeholders does not match the images"
                )
            first.append(Located(row, encoded, len(first), grid, columns[: len(grid)]))
            encoded += 1
            columns = columns[len(grid) :]
        located += first
    return located


def _copies(
    ids: Tensor, placeholders: Mapping[str, int], grids: Mapping[str, Sequence[Grid]]
) -> int:
    """How many rows of the batch share each prompt's images."""
    for modality, found in grids.items():
        encoded = sum(len(grid) for grid in found)
        placed = int((ids == placeholders[modality]).sum())
        if encoded and placed % encoded == 0:
            return max(1, placed // encoded)
        raise UnsupportedCallError(
            f"{placed} {modality} placeholders in the prompts, {encoded} encoded tokens"
        )
    return 1
