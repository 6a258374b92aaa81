"""Showing the vision encoder a smaller picture, where it takes patches of pictures of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlmcompress.budget.planner import Planner
from vlmcompress.errors import UnsupportedCallError, VLMCompressError
from vlmcompress.methods.contracts.before_projector import Resizer
from vlmcompress.patches.encoder.qwen_patches import QwenPatches
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.sequence.survivors import Survivors
from vlmcompress.patches.signals.signals import Encoded
from vlmcompress.tokens import Grid, Layout


@dataclass
class _Run:
    """One feature call."""

    layouts: Sequence[Layout]
    shapes: Sequence[Grid]
    """What the encoder was given instead of each."""


class Resizing:
    """Lets a `Resizer` say how large pictures are.

    Pixels are those that the processor made: normalised and cut into patches. They are put together
    again, resized with an antialiased bilinear filter in float32, and cut up as before.
    """

    takes_chunks = True
    dropped_before: tuple[int, int] | None = None

    def __init__(self, parts: ModelParts, planner: Planner) -> None:
        self._model, self._family = parts.model, parts.family
        self._method = cast(Resizer, planner.pipeline.upstream)

    def hook(self, attached: Attachments) -> None:
        """The encoder needs none."""

    def layouts(self, modality: str, call: Mapping[str, Any]) -> Sequence[Layout]:
        return self._family.layouts(self._model, modality, (), call)

    def encode(
        self, modality: str, call: Mapping[str, Any], run: Callable[..., Any], planner: Planner
    ) -> tuple[Any, _Run]:
        patches = QwenPatches.of(self._model, self._family, modality, call)
        shapes = [self._shape(grid, planner) for grid in patches.grids]
        done = _Run(patches.layouts, shapes)
        if shapes == patches.grids:
            return run(), done
        known = [n for n in call.get("kwargs", {}) if n.startswith(f"{modality}_")]
        if known:
            raise UnsupportedCallError(
                f"{', '.join(known)} describe the picture before {self._method.name} made it "
                "smaller: do not give them"
            )
        rows, side = patches.rows, patches.side
        pairs = zip(rows, patches.grids, shapes, strict=True)
        resized = [_resized(patches, *one) for one in pairs]
        sizes, name = [[g.t, g.h * side, g.w * side] for g in shapes], f"{modality}_grid_thw"
        changed = {patches.pixels: torch.cat(resized), name: call[name].new_tensor(sizes)}
        return run(**changed), done

    def _shape(self, grid: Grid, planner: Planner) -> Grid:
        budget = None if planner.budget is None else planner.upstream(grid, grid)
        shape = self._method.shape(grid, budget)
        if not (shape.t == grid.t and 0 < shape.h <= grid.h and 0 < shape.w <= grid.w):
            raise VLMCompressError(
                f"{self._method.name} asked for a grid of {shape} instead of {grid}: the same "
                "length and at most the same height and width are possible"
            )
        return shape

    def put_back(
        self, done: _Run, modality: str, call: Mapping[str, Any], output: Any, encoded: Encoded
    ) -> Encoded:
        pairs = list(zip(done.layouts, done.shapes, strict=True))
        cells = [_cells(layout.grid, shape) for layout, shape in pairs]
        survivors = [
            replace(Survivors.of(cell, layout), grids=(shape,))
            for cell, (layout, shape) in zip(cells, pairs, strict=True)
        ]
        if any(one.merged for one in survivors):
            output.pooler_output = _spread(output.pooler_output, cells)
            stacked = getattr(output, "deepstack_features", None)
            if stacked is not None:
                output.deepstack_features = [_spread(layer, cells) for layer in stacked]
        return replace(encoded, layouts=done.layouts, survivors=survivors)


def _resized(patches: QwenPatches, rows: Tensor, grid: Grid, shape: Grid) -> Tensor:
    """Rows of one image or clip on another grid; as they are on the same."""
    if shape == grid:
        return rows
    frames = patches.frames(rows, grid)
    size = (frames.shape[-2] // grid.h * shape.h, frames.shape[-1] // grid.w * shape.w)
    smaller = interpolate(
        frames.float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return patches.cut(smaller, shape).to(rows.dtype)


def _cells(grid: Grid, shape: Grid) -> Tensor:
    """[N] int64: the token of `shape` at the place of each token of `grid`."""
    t, h, w = (torch.arange(n) for n in (grid.t, grid.h, grid.w))
    rows, columns = h * shape.h // grid.h, w * shape.w // grid.w
    frames = t[:, None, None] * shape.h + rows[:, None]
    return (frames * shape.w + columns).flatten()


def _spread(values: Any, cells: Sequence[Tensor]) -> Any:
    """Features of each image [K, D] as features of its places [N, D]; lists and tuples stay so."""
    return type(values)(
        [value[cell.to(value.device)] for value, cell in zip(values, cells, strict=True)]
    )
