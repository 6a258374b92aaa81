"""Whether tokens lie on their grid where they show something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vlmcompress.laws.picture_tokens import embeddings_of
from vlmcompress.laws.subject import Subject
from vlmcompress.media.video import Video
from vlmcompress.tokens import Grid, Layout

_CONTRAST = 1.5
"""How much more the tokens that notice most must change than the others, for a place to show."""


def in_corner(subject: Subject, layouts: Sequence[tuple[int, Layout]]) -> float | None:
    """Of the tokens that notice most of a corner that is not grey, the share that lies there.

    As many are looked at as lie there. The worst of the pictures of the first prompt.

    Returns:
        None where no picture is one grid, or none shows the corner in some tokens more than in
        others.
    """
    assert subject.grey is not None
    assert subject.corner is not None
    grey, corner = (embeddings_of(subject.parts, one) for one in (subject.grey, subject.corner))
    if not grey.shape == corner.shape == subject.tokens.embeddings.shape:
        return None
    change = (corner.double() - grey.double()).norm(dim=-1)[0].cpu()
    shares = []
    for (_, layout), mine in zip(layouts, subject.tokens.placed(layouts), strict=True):
        if len(layout.parts) == 1 and min(layout.grid.h, layout.grid.w) > 1:
            found = _share(change[mine[layout.visual]], layout.grid)
            shares += [] if found is None else [found]
    return min(shares, default=None)


def _share(change: Tensor, grid: Grid) -> float | None:
    """See `in_corner`, for one grid; tokens on the border of the corner are left out."""
    t, y, x = torch.meshgrid(*map(_sides, (grid.t, grid.h, grid.w)), indexing="ij")
    late = t > 0 if grid.t > 1 else t == 0
    inside = (late & (y < 0) & (x > 0)).flatten()
    asked = ((y != 0) & (x != 0) & ((t != 0) | (grid.t == 1))).flatten()
    change, inside = change[asked], inside[asked]
    most = change.topk(int(inside.sum())).indices
    rest = torch.ones_like(inside)
    rest[most] = False
    if not change[most].mean() > _CONTRAST * change[rest].mean():
        return None
    return float(inside[most].float().mean())


def grey_like(medium: Image.Image | Video, corner: bool) -> Image.Image | Video:
    """A grey picture or clip of the same size; its upper right quarter may be noise.

    Of a clip in the second half of its frames. A picture with things on it would be changed
    elsewhere, too, where these are.
    """
    if isinstance(medium, Video):
        return replace(medium, frames=_grey(medium.frames.shape, corner))
    return Image.fromarray(_grey((1, medium.height, medium.width, 3), corner)[0])


def _grey(shape: tuple[int, ...], corner: bool) -> npt.NDArray[np.uint8]:
    frames = np.full(shape, 128, np.uint8)
    if corner:
        quarter = frames[shape[0] // 2 :, : shape[1] // 2, shape[2] // 2 :]
        quarter[:] = np.random.default_rng(0).integers(0, 256, quarter.shape)
    return frames


def _sides(count: int) -> Tensor:
    """[count]: -1 before the middle, 1 behind it, 0 on it."""
    return (2 * torch.arange(count) - (count - 1)).sign()
