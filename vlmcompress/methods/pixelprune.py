"""PixelPrune: what its neighbours already show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.contracts.before_projector import PixelSelector, PixelTokens
from vlmcompress.methods.contracts.method import share_kept
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.contracts.threshold import ByThreshold
from vlmcompress.ops.deferred_checks import expect
from vlmcompress.ops.select import top_k
from vlmcompress.tokens import Grid

_BLOCK = 256
"""Blocks of pixels that are predicted together, for memory."""


@dataclass(frozen=True)
class PixelPrune(ByThreshold, PixelSelector):
    """Drop blocks of pixels that an earlier neighbour predicts, before the vision encoder.

    Predictive coding on the grid of visual tokens, after the LOCO-I predictor of JPEG-LS. With left
    neighbour A, upper B and upper-left C the prediction is B where C looks like A but not like B,
    and A otherwise; in the first row A, in the first column B. Two blocks look alike if no value of
    their normalised pixels differs by more than `tolerance`. A block like its prediction is dropped
    and from then on counts as equal to it, so that differences do not add up. The first block
    always stays. Official code: OPPO-Mente-Lab/PixelPrune (its default metric, "max").

    A `threshold` is a tolerance that goes with no budget, as the other methods have one.

    Deviations:
        The paper is about images. Here a block of a clip may also be predicted by the same place of
        the frame before, if that is closer; the first block of a later frame only by that.
        The paper has no budget. Given one, the blocks with the largest differences from their
        predictions stay, predicted from the picture as it is (ours).
    """

    name: ClassVar[str] = "pixelprune"
    paper: ClassVar[str] = "arXiv 2604.00886"
    summary: ClassVar[str] = "drops pixels that repeat their neighbours"
    adaptive: ClassVar[bool] = True

    tolerance: float = 0.0
    """Largest difference of two values that look alike, in normalised pixels; 0 for equal ones."""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if not 0 <= self.tolerance < math.inf:
            raise VLMCompressError(
                f"pixelprune: tolerance must be a number of 0 or more, got {self.tolerance}"
            )
        self.check_threshold(math.inf)
        if self.threshold is not None and self.tolerance:
            raise VLMCompressError(
                f"pixelprune: a threshold is a tolerance without a budget: give one of them, got "
                f"threshold={self.threshold} and tolerance={self.tolerance}"
            )

    def keep_count(self, grid: Grid, budget: float | None) -> int:
        """All without a budget: at most so many stay."""
        return len(grid) if budget is None else share_kept(self.name, grid, budget)

    @property
    def alike(self) -> float:
        """The largest difference of two values that look alike."""
        return self.tolerance if self.threshold is None else self.threshold

    def select(self, tokens: PixelTokens, count: int, exact: bool) -> Tensor:
        """[count] int64 ascending, or fewer where not `exact`."""
        differences = self.differences(tokens, replaces=not exact)
        if exact:
            return top_k(differences, count)[:count]
        return (differences > self.alike).nonzero()[:, 0][:count]

    @torch.no_grad()
    def differences(self, tokens: PixelTokens, replaces: bool) -> Tensor:
        """[N] float32: how far each block is from its prediction; infinitely for the first.

        Where dropped blocks are replaced, those of one wave t + h + w = const depend on earlier
        waves only and are done together.

        Args:
            tokens: of one image or clip.
            replaces: whether dropped blocks count as equal to their predictions from then on.

        Raises:
            VLMCompressError: a pixel is NaN or infinite.
        """
        grid, picture = tokens.grid, tokens.pixels.float()
        low, high = picture.aminmax()
        expect(
            low.isfinite() & high.isfinite(),
            lambda: VLMCompressError("pixelprune: pixels must be finite"),
        )
        if replaces:
            picture = picture.clone()
        found = picture.new_full((len(grid),), math.inf)
        for places in _waves(grid) if replaces else torch.split(torch.arange(1, len(grid)), _BLOCK):
            place = places.to(picture.device)
            guess, difference = self._predicted(picture, grid, place)
            found[place] = difference
            if replaces:
                drop = (difference <= self.alike)[:, None]
                picture[place] = torch.where(drop, guess, picture[place])
        return found

    def _predicted(self, picture: Tensor, grid: Grid, place: Tensor) -> tuple[Tensor, Tensor]:
        """[n, P] predictions of some blocks of `picture` [N, P], and [n] how far these are off."""
        c, r, f = place % grid.w, place // grid.w % grid.h, place // (grid.h * grid.w)

        def shown(back: int) -> Tensor:
            # Where there is no such neighbour, another decides: what is read there is not used.
            return picture.index_select(0, (place - back).clamp_min(0))

        block, left, up, corner = map(shown, (0, 1, grid.w, grid.w + 1))
        edge = _apart(corner, left) <= self.alike
        edge &= _apart(corner, up) > self.alike
        upper = (c == 0) | ((r > 0) & edge)
        guess = torch.where(upper[:, None], up, left)
        near = _apart(block, guess).masked_fill((r == 0) & (c == 0), math.inf)
        if grid.t == 1:
            return guess, near
        before = shown(grid.h * grid.w)
        still = _apart(block, before).masked_fill(f == 0, math.inf)
        return torch.where((still < near)[:, None], before, guess), torch.minimum(near, still)


def _waves(grid: Grid) -> tuple[Tensor, ...]:
    """Places, on the CPU, by t + h + w = 1, 2 and so on."""
    frames, rows, columns = (torch.arange(n) for n in (grid.t, grid.h, grid.w))
    waves = (frames[:, None, None] + rows[:, None] + columns).flatten()
    return torch.split(waves.argsort(stable=True), waves.bincount().tolist())[1:]


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs_().amax(-1)
