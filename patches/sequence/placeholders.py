"""Finding every image's visual tokens in the prompts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.sequence.separators import Closing, Separators
from vlmcompress.patches.sequence.survivors import open_grids
from vlmcompress.tokens import Grid, Layout

Continues = Callable[[list[int], list[list[int]]], list[bool]]
OfPieces = Callable[[Layout], Layout]
Piece = tuple[str, int]
Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Located:
    """One image or clip of one prompt."""

    row: int
    pieces: Pieces
    """What the encoder made it of, as (modality, which one of the call); mostly one piece. Rows
    that repeat a prompt repeat its pieces."""
    ordinal: int
    """Which image of its prompt this is."""
    layout: Layout
    columns: Tensor
    """[N] int64, on the CPU: the columns of its visual tokens in `input_ids`, in raster order."""
    separators: Separators
    """On the CPU, in columns."""

    placeholders: Tensor
    """[N + S] int64, on the CPU: the columns of both."""

    prompt: int = 0
    """Which prompt of the caller the row is of: beams repeat a prompt in several rows."""
    unmasked: Tensor | None = None
    """[M] int64, on the CPU, ascending: visual tokens that the attention mask leaves open; None for
    all. Nobody attends to the others, so that no method sees them and nothing counts them."""

    @classmethod
    def of(cls, row: int, pieces: Pieces, layout: Layout, placeholders: Tensor) -> Located:
        """Tell visual tokens from separators."""
        visual = layout.visual
        separators = Separators.of(layout, placeholders[~visual])
        return cls(row, pieces, 0, layout, placeholders[visual], separators, placeholders)

    def under(self, valid: Tensor) -> Located:
        """The same under an attention mask of its row, [L] bool on the CPU.

        Separators and placeholders are then those that it leaves open.
        """
        if bool(valid[self.placeholders].all()):
            return self
        return replace(
            self,
            separators=self.separators.only(valid[self.separators.at]),
            placeholders=self.placeholders[valid[self.placeholders]],
            unmasked=valid[self.columns].nonzero()[:, 0],
        )

    @property
    def open(self) -> Tensor:
        """[M] int64, on the CPU, ascending: the visual tokens that may be attended to."""
        return torch.arange(len(self.layout)) if self.unmasked is None else self.unmasked

    @property
    def open_layout(self) -> Layout:
        """How those lie: what a budget is about."""
        if self.unmasked is None:
            return self.layout
        alone = torch.zeros(len(self.layout), dtype=torch.bool)
        alone[self.unmasked] = True
        return Layout(open_grids(alone, self.layout.parts))

    def closing(self, keep: Tensor, indices: Tensor) -> Closing:
        """Dropping all open tokens but `indices`; `keep` [B, L] bool, of columns."""
        device = keep.device
        return Closing(
            keep[self.row],
            self.columns[self.open].to(device),
            self.columns.to(device)[indices],
            indices,
            self.separators.to(device),
            len(self.layout),
        )

    def of_several(self, of_pieces: OfPieces) -> Located:
        """The same, its layout that of an image that was encoded in pieces, if it was."""
        return self if len(self.pieces) == 1 else replace(self, layout=of_pieces(self.layout))

    def __add__(self, other: Located) -> Located:
        layout = self.layout + other.layout
        placeholders = torch.cat([self.placeholders, other.placeholders])
        return Located.of(self.row, self.pieces + other.pieces, layout, placeholders)


def locate(
    input_ids: Tensor,
    placeholders: Mapping[str, int],
    layouts: Mapping[str, Sequence[Layout]],
    continues: Continues,
    of_pieces: OfPieces,
) -> list[Located]:
    """Walk the placeholders of each row and hand them to the images in order.

    Args:
        input_ids: [B, L], on the CPU.
        placeholders: modality -> placeholder token id.
        layouts: modality -> layout of each encoded image, as the encoder was called. Beams and
            `num_return_sequences` repeat rows after encoding: B is then a multiple of the prompts,
            and each group of equal rows shares its images.
        continues: `Family.continues`.
        of_pieces: `Family.of_pieces`.

    Raises:
        UnsupportedCallError: placeholders and encoded images do not match.
    """
    copies = _copies(input_ids, placeholders, layouts)
    token_of = {
        placeholders[modality]: iter([((modality, n), layout) for n, layout in enumerate(found)])
        for modality, found in layouts.items()
    }
    located: list[Located] = []
    first: list[Located] = []
    for row, line in enumerate(input_ids):
        if row % copies:
            located += [replace(image, row=row) for image in first]
            continue
        pieces = list(_pieces(row, line, token_of))
        joined = _join(line, pieces, continues)
        first = [replace(image.of_several(of_pieces), prompt=row // copies) for image in joined]
        located += first
    return located


def _pieces(
    row: int, line: Tensor, token_of: Mapping[int, Iterator[tuple[Piece, Layout]]]
) -> Iterator[Located]:
    """What the encoder gave for one row, piece by piece."""
    columns = torch.isin(line, torch.tensor(list(token_of))).nonzero()[:, 0]
    while len(columns):
        piece, layout = next(token_of[int(line[columns[0]])], (None, None))
        if piece is None or layout is None or layout.placeholders > len(columns):
            raise UnsupportedCallError(
                f"row {row}: the number of image placeholders does not match the images"
            )
        mine, columns = columns[: layout.placeholders], columns[layout.placeholders :]
        yield Located.of(row, (piece,), layout, mine)


def _join(line: Tensor, pieces: list[Located], continues: Continues) -> list[Located]:
    """The images of a row; one that was encoded in several pieces becomes one again."""
    joins = continues(line.tolist(), [piece.columns.tolist() for piece in pieces])
    images: list[Located] = []
    for piece, more in zip(pieces, joins, strict=True):
        if more:
            images[-1] += piece
        else:
            images.append(replace(piece, ordinal=len(images)))
    return images


def _copies(
    ids: Tensor, placeholders: Mapping[str, int], layouts: Mapping[str, Sequence[Layout]]
) -> int:
    """How many rows of the batch share each prompt's images."""
    for modality, found in layouts.items():
        encoded = sum(layout.placeholders for layout in found)
        placed = int((ids == placeholders[modality]).sum())
        if encoded and placed % encoded == 0:
            return max(1, placed // encoded)
        raise UnsupportedCallError(
            f"{placed} {modality} placeholders in the prompts, {encoded} encoded tokens"
        )
    return 1


@dataclass(frozen=True)
class Prompt:
    """What a prefill is made of."""

    images: Sequence[Located]
    text: Sequence[int]
    """Per row of the batch its tokens that are no placeholders; padding is none."""
    survivors: Sequence[Sequence[Grid] | None]
    """Per image what a method before the projector left of each grid; None where unknown."""

    @classmethod
    def of(
        cls,
        unmasked: Tensor,
        images: Sequence[Located],
        survivors: Sequence[Sequence[Grid] | None] | None = None,
    ) -> Prompt:
        """Count the text of the columns `unmasked` [B, L] bool, on the CPU.

        Of an image that is masked, what a method left before the projector is not looked at: its
        budget is that of the whole image.
        """
        text = unmasked.sum(1).tolist()
        for image in images:
            text[image.row] -= len(image.placeholders)
        survivors = [None] * len(images) if survivors is None else survivors
        pairs = zip(images, survivors, strict=True)
        return cls(images, text, [None if one.unmasked is not None else s for one, s in pairs])
