"""Placeholders that are no picture, and what becomes of them when their rows are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmcompress.ops.deferred_checks import Checks
from vlmcompress.tokens import Layout


@dataclass(frozen=True)
class Separators:
    """Placeholders of an image that are no picture, each bound to a row of its visual tokens."""

    at: Tensor
    """[S] int64: where they are, in columns of the prompt or in slots."""
    rows: Tensor
    """[S, 2] int64, on the CPU: first visual token of the row, and the one after the last."""

    @classmethod
    def of(cls, layout: Layout, at: Tensor) -> Separators:
        """Those of a layout, which are `at` [S]."""
        rows = [(one.start, one.stop) for one in layout.separators]
        return cls(at, torch.tensor(rows).view(-1, 2))

    def __len__(self) -> int:
        return len(self.at)

    def to(self, device: torch.device) -> Separators:
        """The same with places on `device`."""
        return Separators(self.at.to(device), self.rows)

    def bound_to(self, index: Tensor) -> Tensor:
        """[S] bool: those with any of the visual tokens `index` in their row."""
        index = index.sort().values
        first, after = torch.searchsorted(index, self.rows.to(index.device)).unbind(1)
        return after > first

    def all_stay(self, tokens: int, count: int) -> bool:
        """Whether no row can have lost all its tokens, whichever are kept.

        Args:
            tokens: visual tokens of the image, closed ones among them.
            count: how many of them are kept.
        """
        return not len(self) or count > tokens - int(self.rows.diff().min())

    def only(self, stay: Tensor) -> Separators:
        """Those that `stay` [S] bool, on the CPU."""
        places = stay.nonzero()[:, 0]
        if len(places) == len(self):
            return self
        return Separators(self.at[places.to(self.at.device)], self.rows[places])

    def move(self, place: Tensor) -> Separators:
        """The same, now at `place[at]`."""
        return Separators(place[self.at], self.rows)


@dataclass(frozen=True)
class Closing:
    """The tokens of an image that are dropped, and separators of rows that lose them all."""

    keep: Tensor
    """[L] bool of its row, changed in place by `close`."""
    at: Tensor
    """[V] int64: where its tokens are that were open so far."""
    staying: Tensor
    """[K] int64: those of them that stay."""
    index: Tensor
    """[K] int64: raster indices of those."""
    separators: Separators
    """Of the image, open so far."""
    tokens: int
    """Visual tokens of the image, closed ones among them."""

    def run(self, stay: Tensor | None) -> tuple[int, Separators]:
        """Close them; `stay` [S] bool, on the CPU, says which separators stay, None for all."""
        self.keep[self.at] = False
        self.keep[self.staying] = True
        dropped, left = len(self.at) - len(self.staying), self.separators
        if stay is not None:
            self.keep[left.at] = stay.to(self.keep.device)
            left = left.only(stay)
        return dropped + len(self.separators) - len(left), left


def close(closings: Sequence[Closing], checks: Checks) -> list[tuple[int, Separators]]:
    """Close tokens of all images.

    Which separators lose their rows depends on which tokens are kept: where numbers alone do not
    tell, the device is waited for, once for all images and together with `checks`.

    Returns:
        Per image how many were closed, and the kept separators.

    Raises:
        VLMCompressError: a check that was due failed.
    """
    asked = {
        number: one.separators.bound_to(one.index)
        for number, one in enumerate(closings)
        if not one.separators.all_stay(one.tokens, len(one.index))
    }
    found = checks.read(list(asked.values())) if asked else []
    stay = dict(zip(asked, found, strict=True))
    return [one.run(stay.get(number)) for number, one in enumerate(closings)]
