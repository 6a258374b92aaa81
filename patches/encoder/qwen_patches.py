"""Pixels as the processors of Qwen cut them up: rows of patches, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlmcompress.patches.families.family import Family
from vlmcompress.tokens import Grid, Layout


@dataclass(frozen=True)
class QwenPatches:
    """The images or clips of one feature call.

    A row holds one patch as [channels, frames, height, width]. Rows come in the order [time, block
    row, block column, patch row, patch column], and a block of patches becomes one visual token.
    """

    pixels: str
    """Name of the argument."""
    rows: Sequence[Tensor]
    """[N * side**2, P] of each."""
    layouts: Sequence[Layout]
    """Each is one grid."""
    side: int
    """Patches along a side of a block."""
    size: int
    """Pixels along a side of a patch."""
    deep: int
    """Frames in a patch."""

    @classmethod
    def of(
        cls, model: nn.Module, family: Family, modality: str, call: Mapping[str, Any]
    ) -> QwenPatches:
        """Those of a call by its arguments."""
        config: Any = model.config
        vision = config.vision_config
        layouts = family.layouts(model, modality, (), call)
        side = int(vision.spatial_merge_size)
        pixels = "pixel_values" if modality == "image" else "pixel_values_videos"
        rows = call[pixels].split([len(layout) * side * side for layout in layouts])
        deep = int(vision.temporal_patch_size)
        return cls(pixels, rows, layouts, side, int(vision.patch_size), deep)

    @property
    def grids(self) -> list[Grid]:
        """Of the visual tokens of each."""
        return [layout.grid for layout in self.layouts]

    def frames(self, rows: Tensor, grid: Grid) -> Tensor:
        """[frames, channels, height, width] of one image or clip."""
        blocks = rows.view(
            grid.t, grid.h, grid.w, self.side, self.side, -1, self.deep, self.size, self.size
        )
        size = self.side * self.size
        return blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(
            grid.t * self.deep, -1, grid.h * size, grid.w * size
        )

    def cut(self, frames: Tensor, grid: Grid) -> Tensor:
        """The rows of such frames, on a grid of tokens."""
        m, p = self.side, self.size
        blocks = frames.reshape(grid.t, self.deep, -1, grid.h, m, p, grid.w, m, p)
        return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(len(grid) * m * m, -1)
